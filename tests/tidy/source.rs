//! The repository as the rules see it: its files, and Rust sources without what is not code.

use std::fs;
use std::path::{Path, PathBuf};

/// The top of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A file of the repository by its path below the top.
pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// One Rust source.
pub(crate) struct Source {
    /// Below the top, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl Source {
    /// What it is made of, without comments and the content of strings; line numbers stay.
    pub(crate) fn code(&self) -> String {
        strip(&self.text)
    }

    /// As [`Self::code`], without the unit tests at its end.
    pub(crate) fn product(&self) -> String {
        let code = self.code();
        match tests_begin(&code) {
            Some(line) => code.lines().take(line).map(|l| format!("{l}\n")).collect(),
            None => code,
        }
    }

    /// The unit tests at its end.
    pub(crate) fn unit_tests(&self) -> String {
        let code = self.code();
        match tests_begin(&code) {
            Some(line) => code.lines().skip(line).map(|l| format!("{l}\n")).collect(),
            None => String::new(),
        }
    }

    /// Whether all of it is tests, or helps them.
    pub(crate) fn is_test(&self) -> bool {
        self.path.starts_with("tests/")
            || self.path.contains("/tests/")
            || self.path.ends_with("/tests.rs")
            || self.path.ends_with("/testing.rs")
            || self.path.contains("/benches/")
    }
}

/// The line of `#[cfg(test)]` before a `mod` with a body.
fn tests_begin(code: &str) -> Option<usize> {
    let lines: Vec<_> = code.lines().collect();
    lines.windows(2).position(|pair| {
        pair[0].trim() == "#[cfg(test)]" && pair[1].starts_with("mod ") && pair[1].trim_end().ends_with('{')
    })
}

/// Every Rust source of the workspace.
pub(crate) fn sources() -> Vec<Source> {
    let mut out = Vec::new();
    for room in ["proto", "services", "tests"] {
        walk(&root().join(room), &mut |path| {
            if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(path).unwrap();
                out.push(Source { path: below_top(path), text });
            }
        });
    }
    out.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(out.len() > 30, "only {} sources found", out.len());
    out
}

pub(crate) fn below_top(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().to_str().unwrap().replace('\\', "/")
}

pub(crate) fn walk(dir: &Path, visit: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                walk(&path, visit);
            }
        } else {
            visit(&path);
        }
    }
}

/// Takes comments and the content of string and character literals out, keeping every line break.
fn strip(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        i = match literal_end(&chars, i) {
            Some(end) => {
                out.extend(chars[i..end].iter().filter(|c| **c == '\n'));
                end
            }
            None => {
                out.push(chars[i]);
                i + 1
            }
        };
    }
    out
}

/// Where the comment or literal that begins at `i` ends, if one does.
fn literal_end(chars: &[char], i: usize) -> Option<usize> {
    let at = |n: usize| chars.get(n).copied().unwrap_or('\0');
    let after_word = i > 0 && (at(i - 1).is_alphanumeric() || at(i - 1) == '_');
    match at(i) {
        '/' if at(i + 1) == '/' => Some(find(chars, i, |n| at(n) == '\n')),
        '/' if at(i + 1) == '*' => Some(find(chars, i + 2, |n| at(n) == '*' && at(n + 1) == '/') + 2),
        'r' if !after_word && matches!(at(i + 1), '"' | '#') => {
            let hashes = (i + 1..).take_while(|n| at(*n) == '#').count();
            (at(i + 1 + hashes) == '"').then(|| {
                let closes = |n: usize| at(n) == '"' && (1..=hashes).all(|k| at(n + k) == '#');
                find(chars, i + 2 + hashes, closes) + 1 + hashes
            })
        }
        '"' => {
            let mut n = i + 1;
            while n < chars.len() && at(n) != '"' {
                n += if at(n) == '\\' { 2 } else { 1 };
            }
            Some(n + 1)
        }
        // A character, not a lifetime.
        '\'' if at(i + 1) == '\\' => Some(find(chars, i + 3, |n| at(n) == '\'') + 1),
        '\'' if at(i + 2) == '\'' => Some(i + 3),
        _ => None,
    }
    .map(|end| end.min(chars.len()))
}

fn find(chars: &[char], from: usize, is_end: impl Fn(usize) -> bool) -> usize {
    (from..chars.len()).find(|n| is_end(*n)).unwrap_or(chars.len())
}

/// The lines of `code` that hold one of `words`, as `path:line: word`. A word is matched where no identifier goes on.
pub(crate) fn hits(path: &str, code: &str, words: &[&str]) -> Vec<String> {
    let goes_on = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let mut out = Vec::new();
    for (number, line) in code.lines().enumerate() {
        for word in words {
            let found = line.match_indices(word).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let after = line[at + word.len()..].chars().next();
                let first = word.chars().next().is_some_and(|c| c.is_alphanumeric());
                let last = word.chars().next_back().is_some_and(|c| c.is_alphanumeric());
                !(first && goes_on(before) || last && goes_on(after))
            });
            if found {
                out.push(format!("{path}:{}: `{word}`", number + 1));
            }
        }
    }
    out
}

#[test]
fn comments_and_literals_are_no_code() {
    let text = "let a = \"x // \\\" y\"; // z\nlet b = 'q'; let c: &'a str = r#\"w\"v\"#; /* u\n */ d";
    assert_eq!(strip(text), "let a = ; \nlet b = ; let c: &'a str = ; \n d");
    assert_eq!(hits("f", "sleep(x); asleep(y); sleep_more()", &["sleep("]), ["f:1: `sleep(`"]);
}
