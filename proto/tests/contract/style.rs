//! The contract's style, held over the compiled descriptors: what a reader of the `.proto` files may rely on, whoever wrote
//! the latest of them. `buf lint` checks part of it in CI; this needs no tool but the compiler.

use std::collections::{BTreeMap, BTreeSet};

use p2psb_proto::wire::DESCRIPTORS;
use prost::Message as _;
use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};

/// Field numbers kept for experiments: never in the contract itself.
const EXPERIMENTAL: std::ops::RangeInclusive<i32> = 50..=99;

/// The default port behind which each service is found, as its `buf curl` lines must show it.
const PORTS: [(&str, u16); 4] = [
    ("p2psb.rendezvous.v1", 7400),
    ("p2psb.discovery.v1", 7410),
    ("p2psb.package_index.v1", 7420),
    ("p2psb.agent.v1", 7440),
];

/// One `.proto` file of ours, with its comments by position.
struct File {
    file: FileDescriptorProto,
    comments: BTreeMap<Vec<i32>, String>,
}

/// Something that has a name and should have a comment.
struct Element {
    name: String,
    comment: Option<String>,
}

fn files() -> Vec<File> {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let ours = set.file.into_iter().filter(|f| f.name().starts_with("p2psb/"));
    let files: Vec<_> = ours.map(File::new).collect();
    assert!(files.len() >= 6, "the descriptors hold only {} files of ours", files.len());
    files
}

impl File {
    fn new(mut file: FileDescriptorProto) -> Self {
        let locations = file.source_code_info.take().expect("compiled with source info").location;
        let comments = locations
            .into_iter()
            .filter_map(|l| l.leading_comments.map(|text| (l.path, text.trim().to_owned())))
            .collect();
        Self { file, comments }
    }

    fn package(&self) -> &str {
        self.file.package()
    }

    /// Every element of the file: the file itself, messages, fields, oneofs, enums, values, services, methods.
    fn elements(&self) -> Vec<Element> {
        let mut all = Vec::new();
        // The file speaks through its syntax or its package statement.
        let said = self.comments.get(&vec![12]).or_else(|| self.comments.get(&vec![2]));
        all.push(Element { name: self.file.name().to_owned(), comment: said.cloned() });
        for (i, message) in self.file.message_type.iter().enumerate() {
            self.message(&mut all, vec![4, i as i32], self.package(), message);
        }
        for (i, one) in self.file.enum_type.iter().enumerate() {
            self.enumeration(&mut all, vec![5, i as i32], self.package(), one);
        }
        for (i, service) in self.file.service.iter().enumerate() {
            let name = format!("{}.{}", self.package(), service.name());
            self.push(&mut all, &[6, i as i32], &name);
            for (j, method) in service.method.iter().enumerate() {
                self.push(&mut all, &[6, i as i32, 2, j as i32], &format!("{name}/{}", method.name()));
            }
        }
        all
    }

    fn message(&self, all: &mut Vec<Element>, at: Vec<i32>, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        self.push(all, &at, &name);
        for (i, field) in message.field.iter().enumerate() {
            self.push(all, &below(&at, 2, i), &format!("{name}.{}", field.name()));
        }
        for (i, oneof) in message.oneof_decl.iter().enumerate() {
            self.push(all, &below(&at, 8, i), &format!("{name}.{}", oneof.name()));
        }
        for (i, nested) in message.nested_type.iter().enumerate() {
            self.message(all, below(&at, 3, i), &name, nested);
        }
        for (i, nested) in message.enum_type.iter().enumerate() {
            self.enumeration(all, below(&at, 4, i), &name, nested);
        }
    }

    fn enumeration(&self, all: &mut Vec<Element>, at: Vec<i32>, scope: &str, one: &EnumDescriptorProto) {
        let name = format!("{scope}.{}", one.name());
        self.push(all, &at, &name);
        for (i, value) in one.value.iter().enumerate() {
            self.push(all, &below(&at, 2, i), &format!("{name}.{}", value.name()));
        }
    }

    fn push(&self, all: &mut Vec<Element>, at: &[i32], name: &str) {
        all.push(Element { name: name.to_owned(), comment: self.comments.get(at).cloned() });
    }
}

fn below(at: &[i32], kind: i32, index: usize) -> Vec<i32> {
    [at, &[kind, index as i32]].concat()
}

/// All messages with their full names, nested ones too.
fn messages(files: &[File]) -> Vec<(String, DescriptorProto)> {
    fn walk(scope: &str, message: &DescriptorProto, out: &mut Vec<(String, DescriptorProto)>) {
        let name = format!("{scope}.{}", message.name());
        message.nested_type.iter().for_each(|nested| walk(&name, nested, out));
        out.push((name, message.clone()));
    }
    let mut out = Vec::new();
    for file in files {
        file.file.message_type.iter().for_each(|m| walk(file.package(), m, &mut out));
    }
    out
}

fn enums(files: &[File]) -> Vec<EnumDescriptorProto> {
    let nested = messages(files).into_iter().flat_map(|(_, m)| m.enum_type);
    files.iter().flat_map(|f| f.file.enum_type.clone()).chain(nested).collect()
}

fn upper_snake(camel: &str) -> String {
    let mut out = String::new();
    for (i, c) in camel.chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            out.push('_');
        }
        out.extend(c.to_uppercase());
    }
    out
}

#[test]
fn every_element_is_commented() {
    let files = files();
    let silent: Vec<_> = files
        .iter()
        .flat_map(File::elements)
        .filter(|e| e.comment.as_deref().is_none_or(|c| c.len() < 3))
        .map(|e| e.name)
        .collect();
    assert!(silent.is_empty(), "elements without a comment above them: {silent:#?}");
}

#[test]
fn comments_are_sentences() {
    let files = files();
    let ends = ['.', ':', '?', '!', '"', ')', '\''];
    let odd: Vec<_> = files
        .iter()
        .flat_map(File::elements)
        .filter_map(|e| {
            let text = e.comment.unwrap_or_default();
            let prose = text.split("Try it:").next().unwrap_or_default().trim_end();
            (!prose.is_empty() && !prose.ends_with(ends) && !prose.ends_with('…'))
                .then(|| format!("{}: {prose}", e.name))
        })
        .filter(|text| !text.ends_with('?'))
        .collect();
    assert!(odd.is_empty(), "comments that do not end like a sentence: {odd:#?}");
}

#[test]
fn packages_are_versioned_and_lie_in_their_folder() {
    for file in files() {
        let parts: Vec<_> = file.package().split('.').collect();
        assert!(
            matches!(parts.as_slice(), ["p2psb", room, "v1"]
                if room.chars().all(|c| c.is_ascii_lowercase() || c == '_')),
            "{}: package {}",
            file.file.name(),
            file.package()
        );
        let folder = format!("{}/", file.package().replace('.', "/"));
        assert!(file.file.name().starts_with(&folder), "{} is not in {folder}", file.file.name());
        assert_eq!(file.file.syntax(), "proto3", "{}", file.file.name());
    }
}

#[test]
fn services_requests_and_responses_say_what_they_are() {
    let mut used = BTreeSet::new();
    for file in files() {
        for service in &file.file.service {
            assert!(service.name().ends_with("Service"), "{}", service.name());
            for method in &service.method {
                let full = |kind| format!(".{}.{}{kind}", file.package(), method.name());
                assert_eq!(method.input_type(), full("Request"), "of {}", method.name());
                assert_eq!(method.output_type(), full("Response"), "of {}", method.name());
                assert!(used.insert(full("Request")), "{} serves two methods", method.input_type());
            }
        }
    }
}

#[test]
fn the_zero_of_every_enum_is_unspecified() {
    for one in enums(&files()) {
        let prefix = upper_snake(one.name());
        let zero = &one.value[0];
        assert_eq!((zero.number(), zero.name()), (0, format!("{prefix}_UNSPECIFIED").as_str()));
        for value in &one.value {
            assert!(value.name().starts_with(&format!("{prefix}_")), "{} in {}", value.name(), one.name());
        }
    }
}

#[test]
fn fields_use_no_experimental_number_and_none_is_required() {
    for (name, message) in messages(&files()) {
        for field in &message.field {
            let number = field.number();
            assert!(!EXPERIMENTAL.contains(&number), "{name}.{} has number {number}", field.name());
            assert_ne!(field.label(), Label::Required, "{name}.{}", field.name());
            assert!(!field.proto3_optional(), "{name}.{}: absence is said by the comment", field.name());
        }
    }
}

#[test]
fn a_deleted_field_leaves_its_number_reserved() {
    for (name, message) in messages(&files()) {
        let taken: BTreeSet<_> = message.field.iter().map(|f| f.number()).collect();
        let top = taken.iter().next_back().copied().unwrap_or(0);
        let reserved = |n| message.reserved_range.iter().any(|r| (r.start()..r.end()).contains(&n));
        let gaps: Vec<_> = (1..=top).filter(|n| !taken.contains(n) && !reserved(*n)).collect();
        assert!(gaps.is_empty(), "{name}: numbers {gaps:?} are neither used nor reserved");
    }
}

/// One `buf curl` line of a comment.
struct Curl {
    place: String,
    line: String,
}

fn curls() -> Vec<Curl> {
    let mut out = Vec::new();
    for file in files() {
        for element in file.elements() {
            let comment = element.comment.unwrap_or_default();
            let lines = comment.lines().filter(|l| l.contains("buf curl"));
            out.extend(lines.map(|l| Curl { place: element.name.clone(), line: l.trim().to_owned() }));
        }
    }
    out
}

#[test]
fn every_buf_curl_line_calls_a_method_that_exists() {
    let files = files();
    let all = messages(&files);
    for Curl { place, line } in curls() {
        let command =
            line.strip_prefix("Try it: buf curl --protocol grpc --schema proto --http2-prior-knowledge ");
        let command = command.unwrap_or_else(|| panic!("{place}: an unusual beginning: {line}"));
        let url = command.split(' ').find(|w| w.starts_with("http")).unwrap_or_default();
        let (authority, path) = url.strip_prefix("http://127.0.0.1:").unwrap().split_once('/').unwrap();
        let (service, method) = path.split_once('/').unwrap();

        let file = files.iter().find(|f| {
            service.starts_with(&format!("{}.", f.package()))
                && f.file.service.iter().any(|s| format!("{}.{}", f.package(), s.name()) == service)
        });
        let file = file.unwrap_or_else(|| panic!("{place}: no service {service}"));
        let found = file.file.service.iter().flat_map(|s| &s.method).find(|m| m.name() == method);
        let found = found.unwrap_or_else(|| panic!("{place}: {service} has no method {method}"));
        assert!(!found.client_streaming(), "{place}: one line can't hold a conversation");
        let here = place == service || place == format!("{service}/{method}");
        assert!(here, "{place}: shows how to call another method, {service}/{method}");

        let port =
            PORTS.iter().find(|(package, _)| *package == file.package()).map(|(_, port)| port.to_string());
        assert_eq!(Some(authority), port.as_deref(), "{place}: the default port");

        let body = command.rsplit_once("-d '").and_then(|(_, b)| b.strip_suffix('\'')).unwrap();
        let body: serde_json::Map<_, _> = serde_json::from_str(body).unwrap();
        let (_, request) = all.iter().find(|(name, _)| format!(".{name}") == found.input_type()).unwrap();
        for key in body.keys() {
            let known = request.field.iter().any(|f| f.json_name() == key);
            assert!(known, "{place}: {} has no field {key}", request.name());
        }
    }
}

#[test]
fn every_service_that_anyone_may_call_shows_how() {
    let shown: BTreeSet<_> = curls().into_iter().map(|c| c.place).collect();
    for file in files() {
        for service in &file.file.service {
            let unary = service.method.iter().any(|m| !m.client_streaming());
            let name = format!("{}.{}", file.package(), service.name());
            assert!(!unary || shown.contains(&name), "{name} has no `Try it: buf curl …` line");
        }
    }
}

#[test]
fn what_is_signed_or_hashed_uses_no_map_and_no_float() {
    use prost_types::field_descriptor_proto::Type;
    // Maps have no order on the wire and floats no single spelling: neither may come near a signature or a digest.
    for (name, message) in messages(&files()) {
        assert!(!message.options.as_ref().is_some_and(|o| o.map_entry()), "{name} is a map");
        for field in &message.field {
            assert!(!matches!(field.r#type(), Type::Float | Type::Double), "{name}.{}", field.name());
        }
    }
}
