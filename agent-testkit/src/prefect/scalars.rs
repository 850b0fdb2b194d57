//! The scalars of the schema, named as Hasura names them.

use async_graphql::{InputValueError, InputValueResult, Scalar, ScalarType, Value};
use jiff::Timestamp;
use uuid::Uuid;

use crate::clock::{iso_micros, parse_time};

/// `uuid`: any usual spelling in, lower case with dashes out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Id(pub(crate) Uuid);

#[Scalar(name = "uuid")]
impl ScalarType for Id {
    fn parse(value: Value) -> InputValueResult<Self> {
        let Value::String(text) = &value else {
            return Err(InputValueError::expected_type(value));
        };
        Uuid::parse_str(text).map(Self).map_err(|_| {
            InputValueError::custom(format!("invalid input syntax for uuid: {text:?}"))
        })
    }

    fn to_value(&self) -> Value {
        Value::String(self.0.to_string())
    }
}

/// `timestamptz`: a time without an offset is UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Time(pub(crate) Timestamp);

#[Scalar(name = "timestamptz")]
impl ScalarType for Time {
    fn parse(value: Value) -> InputValueResult<Self> {
        let Value::String(text) = &value else {
            return Err(InputValueError::expected_type(value));
        };
        parse_time(text).map(Self).ok_or_else(|| {
            InputValueError::custom(format!("invalid input syntax for timestamptz: {text:?}"))
        })
    }

    fn to_value(&self) -> Value {
        Value::String(iso_micros(self.0))
    }
}

/// `JSON`: any value; text that holds a JSON object counts as that object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Json(pub(crate) serde_json::Value);

#[Scalar(name = "JSON")]
impl ScalarType for Json {
    fn parse(value: Value) -> InputValueResult<Self> {
        let json = value
            .into_json()
            .map_err(|error| InputValueError::custom(error.to_string()))?;
        if let serde_json::Value::String(text) = &json
            && let Ok(object @ serde_json::Value::Object(_)) = serde_json::from_str(text)
        {
            return Ok(Self(object));
        }
        Ok(Self(json))
    }

    fn to_value(&self) -> Value {
        Value::from_json(self.0.clone()).unwrap_or(Value::Null)
    }
}
