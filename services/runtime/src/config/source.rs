//! The layers of a configuration, each turned into a tree whose leaves know where they were
//! written; the `config` crate lays one over the other.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use ::config::{Config, Map, Source, Value, ValueKind};
use serde::Serialize;

use super::{ConfigError, ENV_CONFIG, ENV_PREFIX, MAX_FILE_BYTES, Spec};

/// How the origin of text from a variable or a flag begins; such text is loosely typed.
const FROM_VARIABLE: &str = "set by the environment variable ";
const FROM_FLAG: &str = "set by ";

/// Whether a value with this origin is text that takes the type of its key.
pub(super) fn is_text(origin: Option<&str>) -> bool {
    origin.is_some_and(|origin| origin.starts_with(FROM_FLAG))
}

/// Defaults, file, environment, flags: one tree.
pub(super) fn merge<T: Serialize>(defaults: &T, spec: &Spec) -> Result<Value, ConfigError> {
    let mut builder = Config::builder().add_source(default_layer(defaults)?);
    if let Some(path) = &spec.file {
        builder = builder.add_source(file_layer(path)?);
    }
    let built = builder.add_source(env_layer(spec)?).add_source(flag_layer(spec)?).build();
    match built {
        Ok(config) => Ok(config.cache),
        Err(error) => Err(ConfigError::Print { problem: error.to_string() }),
    }
}

/// Where the value at the dotted path `key` was written.
pub(super) fn origin_of(root: &Value, key: &str) -> Option<String> {
    let mut value = root;
    for part in key.split('.') {
        let ValueKind::Table(table) = &value.kind else { break };
        value = table.get(part)?;
    }
    value.origin().map(str::to_owned)
}

/// One layer.
#[derive(Debug, Clone, Default)]
struct Layer(Map<String, Value>);

impl Source for Layer {
    fn clone_into_box(&self) -> Box<dyn Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ::config::ConfigError> {
        Ok(self.0.clone())
    }
}

impl Layer {
    /// Puts `value` at `path`, making the tables on the way.
    fn put(&mut self, path: &[&str], value: Value) {
        put(&mut self.0, path, value);
    }
}

fn put(table: &mut Map<String, Value>, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] => {
            table.insert((*last).to_owned(), value);
        }
        [first, rest @ ..] => {
            let child = table.entry((*first).to_owned()).or_default();
            if !matches!(child.kind, ValueKind::Table(_)) {
                child.kind = ValueKind::Table(Map::new());
            }
            if let ValueKind::Table(inner) = &mut child.kind {
                put(inner, rest, value);
            }
        }
    }
}

fn default_layer<T: Serialize>(defaults: &T) -> Result<Layer, ConfigError> {
    let table =
        toml::Table::try_from(defaults).map_err(|error| ConfigError::Print { problem: error.to_string() })?;
    Ok(Layer(tree(table, None)))
}

fn file_layer(path: &Path) -> Result<Layer, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let mut text = String::new();
    // One byte more than allowed, so that a file at the limit differs from one beyond it.
    file.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).map_err(read)?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(ConfigError::TooLarge { path: path.to_owned(), bytes: text.len() as u64 });
    }
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| ConfigError::Syntax {
        path: path.to_owned(),
        problem: error.to_string(),
    })?;
    Ok(Layer(tree(table, Some(&format!("written in {}", path.display())))))
}

fn env_layer(spec: &Spec) -> Result<Layer, ConfigError> {
    let mut layer = Layer::default();
    let mut variables: Vec<_> = spec.env.iter().collect();
    variables.sort();
    for (name, text) in variables {
        let Some(rest) = name.strip_prefix(ENV_PREFIX) else { continue };
        if name == ENV_CONFIG || spec.reserved_env.iter().any(|reserved| reserved == name) {
            continue;
        }
        let lower = rest.to_lowercase();
        let path: Vec<&str> = lower.split("__").collect();
        if path.iter().any(|part| part.is_empty()) {
            return Err(ConfigError::Variable {
                name: name.clone(),
                problem: "a part of its name is empty".into(),
            });
        }
        layer.put(&path, text_value(text, &format!("{FROM_VARIABLE}{name}")));
    }
    Ok(layer)
}

fn flag_layer(spec: &Spec) -> Result<Layer, ConfigError> {
    let mut layer = Layer::default();
    for text in &spec.set {
        let wrong = || ConfigError::Argument { text: text.clone() };
        let (key, value) = text.split_once('=').ok_or_else(wrong)?;
        let path: Vec<&str> = key.trim().split('.').collect();
        if path.iter().any(|part| part.is_empty()) {
            return Err(wrong());
        }
        layer.put(&path, text_value(value, &format!("{FROM_FLAG}--set {}", key.trim())));
    }
    for (flag, key, value) in &spec.flags {
        let path: Vec<&str> = key.split('.').collect();
        layer.put(&path, text_value(value, &format!("{FROM_FLAG}{flag}")));
    }
    Ok(layer)
}

/// Text as a value: a list or table if it is one in TOML, else the text itself. What looks like a
/// list and is none stays text, since `[::1]:7400` is an address.
fn text_value(text: &str, origin: &str) -> Value {
    let trimmed = text.trim();
    if trimmed.starts_with(['[', '{'])
        && let Ok(mut table) = format!("v = {trimmed}").parse::<toml::Table>()
        && let (1, Some(value)) = (table.len(), table.remove("v"))
    {
        return node(value, Some(&origin.to_owned()));
    }
    Value::new(Some(&origin.to_owned()), ValueKind::String(trimmed.to_owned()))
}

fn tree(table: toml::Table, origin: Option<&String>) -> Map<String, Value> {
    table.into_iter().map(|(key, value)| (key, node(value, origin))).collect()
}

fn node(value: toml::Value, origin: Option<&String>) -> Value {
    let kind = match value {
        toml::Value::String(text) => ValueKind::String(text),
        toml::Value::Integer(number) => ValueKind::I64(number),
        toml::Value::Float(number) => ValueKind::Float(number),
        toml::Value::Boolean(truth) => ValueKind::Boolean(truth),
        toml::Value::Datetime(time) => ValueKind::String(time.to_string()),
        toml::Value::Array(items) => {
            ValueKind::Array(items.into_iter().map(|item| node(item, origin)).collect())
        }
        toml::Value::Table(table) => ValueKind::Table(tree(table, origin)),
    };
    Value::new(origin, kind)
}
