//! Reads a request's JSON object field by field.
//!
//! Serde's derive would do, but its messages neither name the field nor its range, and a client's
//! author reads these messages. `null` is as good as absent, unknown fields are left alone.
use crate::ApiError;
use crate::error::shorten;
use axum::http::StatusCode;
use serde_json::{Map, Value};
use std::ops::RangeInclusive;

/// The fields of a request that nobody has read yet.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// Parses a body, which must be a JSON object.
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let bad = |message| ApiError::new(StatusCode::BAD_REQUEST, message);
        match serde_json::from_slice(body) {
            Ok(Value::Object(map)) => Ok(Fields { map }),
            Ok(other) => Err(bad(format!("The body must be a JSON object, not {}.", kind(&other)))),
            Err(e) => Err(bad(format!("We could not parse the JSON body of your request: {e}."))),
        }
    }

    /// The field's value, unless it is absent or null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        // The order of what is left does not matter.
        self.map.swap_remove(name).filter(|value| !value.is_null())
    }

    pub fn required(&mut self, name: &'static str) -> Result<Value, ApiError> {
        self.take(name).ok_or_else(|| missing(name))
    }

    pub fn boolean(&mut self, name: &'static str) -> Result<Option<bool>, ApiError> {
        self.take(name).map(|value| value.as_bool().ok_or_else(|| wrong_type(name, "a boolean", &value))).transpose()
    }

    pub fn string(&mut self, name: &'static str) -> Result<Option<String>, ApiError> {
        self.take(name)
            .map(|value| match value {
                Value::String(text) => Ok(text),
                other => Err(wrong_type(name, "a string", &other)),
            })
            .transpose()
    }

    pub fn decimal(&mut self, name: &'static str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        self.take(name).map(|value| decimal(name, &value, &range)).transpose()
    }

    pub fn integer(&mut self, name: &'static str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        self.take(name).map(|value| integer(name, &value, &range)).transpose()
    }

    /// An integer whose range is a `u32`'s, or less.
    pub fn count(&mut self, name: &'static str, range: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
        let wide = i64::from(*range.start())..=i64::from(*range.end());
        Ok(self.integer(name, wide)?.map(|n| n as u32))
    }
}

/// What a value is, for messages.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

pub(crate) fn missing(param: &'static str) -> ApiError {
    ApiError::invalid(param, format!("Missing required parameter: '{param}'.")).code("missing_required_parameter")
}

pub(crate) fn wrong_type(param: &str, expected: &str, got: &Value) -> ApiError {
    let message = format!("Invalid type for '{param}': expected {expected}, but got {} instead.", kind(got));
    ApiError::invalid(param.to_owned(), message).code("invalid_type")
}

/// A value of the right type that is not among those allowed.
pub(crate) fn not_among(param: &str, got: &str, allowed: &[&str]) -> ApiError {
    let allowed = allowed.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(", ");
    let message = format!("Invalid value for '{param}': '{}'. Supported values are: {allowed}.", shorten(got));
    ApiError::invalid(param.to_owned(), message).code("invalid_value")
}

pub(crate) fn decimal(param: &str, value: &Value, range: &RangeInclusive<f32>) -> Result<f32, ApiError> {
    let number = value.as_f64().ok_or_else(|| wrong_type(param, "a number", value))?;
    let (low, high) = (range.start(), range.end());
    let (side, code) = if number < f64::from(*low) {
        ("below", "decimal_below_min_value")
    } else if number > f64::from(*high) {
        ("above", "decimal_above_max_value")
    } else {
        return Ok(number as f32);
    };
    let message = format!("Invalid '{param}': {value} is {side} the range, {low} to {high}.");
    Err(ApiError::invalid(param.to_owned(), message).code(code))
}

pub(crate) fn integer(param: &str, value: &Value, range: &RangeInclusive<i64>) -> Result<i64, ApiError> {
    // 16.0 is an integer to JSON, and to clients whose language has one kind of number.
    let whole = |n: f64| (n.fract() == 0.0 && n.abs() < 1e18).then_some(n as i128);
    let number = value.as_number().and_then(serde_json::Number::as_i128).or_else(|| value.as_f64().and_then(whole));
    let number = number.ok_or_else(|| wrong_type(param, "an integer", value))?;
    let (side, code, bound) = match i64::try_from(number) {
        Ok(number) if range.contains(&number) => return Ok(number),
        _ if number < i128::from(*range.start()) => ("below the minimum", "integer_below_min_value", range.start()),
        _ => ("above the maximum", "integer_above_max_value", range.end()),
    };
    Err(ApiError::invalid(param.to_owned(), format!("Invalid '{param}': {value} is {side}, {bound}.")).code(code))
}
