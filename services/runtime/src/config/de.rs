//! From the merged tree to typed values, so that an error can name the full path of the key and
//! the place it was written, and so that text from variables and flags can become a list.
//!
//! Numbers, booleans and strings are converted by the `config` crate's own rules.

use std::fmt;

use ::config::{Map, Value, ValueKind};
use serde::de::value::{MapAccessDeserializer, StringDeserializer};
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, IntoDeserializer, Visitor};

use super::error::{ConfigError, DEFAULT_ORIGIN, advice};
use super::source::is_text;

/// Reads a `T` out of the merged tree.
pub(super) fn from_value<T: DeserializeOwned>(value: Value) -> Result<T, ConfigError> {
    T::deserialize(Node(value)).map_err(Failure::into_config_error)
}

/// A failure on its way up: every table and list it passes prepends its key.
#[derive(Debug)]
pub(super) struct Failure {
    kind: Kind,
    path: String,
    origin: Option<String>,
}

#[derive(Debug)]
enum Kind {
    UnknownKey(&'static [&'static str]),
    Missing,
    Other(String),
}

impl Failure {
    fn new(kind: Kind, path: impl Into<String>) -> Self {
        Self { kind, path: path.into(), origin: None }
    }

    /// Adds the key or index of the level that was passed, and the origin if none is known yet.
    fn below(mut self, part: &str, origin: Option<&str>) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        self.path = format!("{part}{dot}{}", self.path);
        self.or_origin(origin)
    }

    fn or_origin(mut self, origin: Option<&str>) -> Self {
        self.origin = self.origin.or_else(|| origin.map(str::to_owned));
        self
    }

    fn into_config_error(self) -> ConfigError {
        let origin = self.origin.unwrap_or_else(|| DEFAULT_ORIGIN.to_owned());
        match self.kind {
            Kind::UnknownKey(known) => {
                let last = self.path.rsplit('.').next().unwrap_or_default();
                ConfigError::UnknownKey { advice: advice(last, known), key: self.path, origin }
            }
            Kind::Missing => ConfigError::Missing { key: self.path },
            Kind::Other(problem) => ConfigError::Value { key: self.path, origin, problem },
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}", self.kind, self.path)
    }
}

impl std::error::Error for Failure {}

impl de::Error for Failure {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Other(message.to_string()), "")
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownKey(expected), field)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!("`{variant}` is not one of {}", expected.join(", ")))
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Kind::Missing, field)
    }
}

impl From<::config::ConfigError> for Failure {
    fn from(error: ::config::ConfigError) -> Self {
        let problem = match error {
            ::config::ConfigError::Type { unexpected, expected, .. } => {
                format!("found {unexpected}, expected {expected}")
            }
            other => other.to_string(),
        };
        Self::new(Kind::Other(problem), "")
    }
}

/// A value of the tree.
struct Node(Value);

impl Node {
    /// The items of a list; text from a variable or flag is split at commas.
    fn items(self) -> Result<Vec<Value>, Failure> {
        let origin = self.0.origin().map(str::to_owned);
        match self.0.kind {
            ValueKind::Array(items) => Ok(items),
            ValueKind::String(text) if is_text(origin.as_deref()) => Ok(text
                .split(',')
                .map(str::trim)
                .filter(|item| !item.is_empty())
                .map(|item| Value::new(origin.as_ref(), item))
                .collect()),
            other => Err(de::Error::custom(format_args!("found {}, expected a list", describe(&other)))),
        }
    }

    fn table(self) -> Result<Map<String, Value>, Failure> {
        match self.0.kind {
            ValueKind::Table(table) => Ok(table),
            other => Err(de::Error::custom(format_args!("found {}, expected a section", describe(&other)))),
        }
    }
}

/// A kind of value in words; the content only where it helps and is short.
fn describe(kind: &ValueKind) -> String {
    match kind {
        ValueKind::Nil => "nothing".into(),
        ValueKind::Table(_) => "a section".into(),
        ValueKind::Array(_) => "a list".into(),
        ValueKind::String(_) => "text".into(),
        other => format!("`{other}`"),
    }
}

/// Scalars are converted by `config`, which knows `"30"`, `"yes"` and number ranges.
macro_rules! scalars {
    ($($method:ident)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
            match self.0.kind {
                ValueKind::Table(_) | ValueKind::Array(_) => {
                    Err(de::Error::custom(format_args!("found {}, expected a single value", describe(&self.0.kind))))
                }
                _ => self.0.$method(visitor).map_err(Failure::from),
            }
        })*
    };
}

impl<'de> Deserializer<'de> for Node {
    type Error = Failure;

    scalars! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_f32 deserialize_f64
        deserialize_str deserialize_string deserialize_char deserialize_unit
    }

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match &self.0.kind {
            ValueKind::Table(_) => self.deserialize_map(visitor),
            ValueKind::Array(_) => self.deserialize_seq(visitor),
            _ => self.0.deserialize_any(visitor).map_err(Failure::from),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        match self.0.kind {
            ValueKind::Nil => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_seq(Items { items: self.items()?.into_iter().enumerate() })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _len: usize, visitor: V) -> Result<V::Value, Failure> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Failure> {
        visitor.visit_map(Keys::new(self.table()?))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Failure> {
        match self.0.kind {
            ValueKind::Table(table) => {
                MapAccessDeserializer::new(Keys::new(table)).deserialize_enum(name, variants, visitor)
            }
            ValueKind::String(text) => {
                let text: StringDeserializer<Failure> = text.into_deserializer();
                text.deserialize_enum(name, variants, visitor)
            }
            other => Err(de::Error::custom(format_args!(
                "found {}, expected one of {}",
                describe(&other),
                variants.join(", ")
            ))),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 bytes byte_buf unit_struct identifier ignored_any
    }
}

struct Items {
    items: std::iter::Enumerate<std::vec::IntoIter<Value>>,
}

impl<'de> de::SeqAccess<'de> for Items {
    type Error = Failure;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        let Some((index, value)) = self.items.next() else { return Ok(None) };
        let origin = value.origin().map(str::to_owned);
        let item = seed.deserialize(Node(value));
        item.map(Some).map_err(|failure| failure.below(&format!("[{index}]"), origin.as_deref()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Keys {
    keys: std::vec::IntoIter<(String, Value)>,
    current: Option<(String, Value)>,
}

impl Keys {
    fn new(table: Map<String, Value>) -> Self {
        let mut keys: Vec<_> = table.into_iter().collect();
        // Which of two mistakes is reported must not depend on the order of a hash table.
        keys.sort_by(|left, right| left.0.cmp(&right.0));
        Self { keys: keys.into_iter(), current: None }
    }
}

impl<'de> de::MapAccess<'de> for Keys {
    type Error = Failure;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Failure> {
        let Some((key, value)) = self.keys.next() else { return Ok(None) };
        let text: StringDeserializer<Failure> = key.clone().into_deserializer();
        let known = seed.deserialize(text).map_err(|failure| failure.or_origin(first_origin(&value)))?;
        self.current = Some((key, value));
        Ok(Some(known))
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Failure> {
        let Some((key, value)) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let origin = first_origin(&value).map(str::to_owned);
        seed.deserialize(Node(value)).map_err(|failure| failure.below(&key, origin.as_deref()))
    }
}

/// The origin of a value, or of the first written value below it: merged tables have none.
fn first_origin(value: &Value) -> Option<&str> {
    match (value.origin(), &value.kind) {
        (Some(origin), _) => Some(origin),
        (None, ValueKind::Table(table)) => table.values().find_map(first_origin),
        (None, ValueKind::Array(items)) => items.iter().find_map(first_origin),
        (None, _) => None,
    }
}
