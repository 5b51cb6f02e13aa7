//! `fleet.schema.json` describes what is really sent.
//!
//! A validator of the few words of JSON Schema (draft 2020-12) that the file uses; a word it does not know is a failure.
//! Objects there have no fields but those they name, so a field that is added, lost or renamed shows.
use serde::Serialize;
use serde_json::Value;
use std::sync::LazyLock;

static SCHEMA: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../fleet.schema.json")).expect("JSON"));

/// Fails unless `value` is one of the schema's `$defs`.
pub fn check(name: &str, value: &impl Serialize) {
    let value = serde_json::to_value(value).expect("JSON");
    if let Err(why) = valid(&SCHEMA["$defs"][name], &value, name) {
        panic!("{why}");
    }
}

fn valid(schema: &Value, value: &Value, at: &str) -> Result<(), String> {
    let words = schema.as_object().ok_or_else(|| format!("{at}: the schema has no such definition"))?;
    for (word, says) in words {
        let fits = match word.as_str() {
            "description" => true,
            "$ref" => {
                let name = says.as_str().and_then(|says| says.strip_prefix("#/$defs/")).expect("a definition");
                valid(&SCHEMA["$defs"][name], value, at)?;
                true
            }
            "type" => match says {
                Value::Array(types) => types.iter().any(|kind| is(kind, value)),
                kind => is(kind, value),
            },
            "const" => says == value,
            "enum" => says.as_array().expect("values").contains(value),
            "minimum" => value.as_f64().is_none_or(|number| number >= says.as_f64().expect("a number")),
            "maximum" => value.as_f64().is_none_or(|number| number <= says.as_f64().expect("a number")),
            "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= says.as_u64().expect("a count")),
            "maxItems" => value.as_array().is_none_or(|items| items.len() as u64 <= says.as_u64().expect("a count")),
            "items" | "prefixItems" => {
                for (i, item) in value.as_array().into_iter().flatten().enumerate() {
                    let schema = if word == "items" { says } else { &says[i] };
                    valid(schema, item, &format!("{at}[{i}]"))?;
                }
                true
            }
            "properties" => {
                for (name, schema) in says.as_object().expect("properties") {
                    if let Some(field) = value.get(name) {
                        valid(schema, field, &format!("{at}.{name}"))?;
                    }
                }
                true
            }
            "required" => says.as_array().expect("names").iter().all(|name| {
                let name = name.as_str().expect("a name");
                !value.is_object() || value.get(name).is_some()
            }),
            "additionalProperties" => {
                assert_eq!(*says, false);
                let known = schema["properties"].as_object().expect("properties");
                value.as_object().is_none_or(|fields| fields.keys().all(|name| known.contains_key(name)))
            }
            "oneOf" => {
                let schemas = says.as_array().expect("schemas").iter();
                schemas.filter(|schema| valid(schema, value, at).is_ok()).count() == 1
            }
            other => panic!("{at}: the validator does not know {other}"),
        };
        if !fits {
            return Err(format!("{at}: {value} is not of {word} {says}"));
        }
    }
    Ok(())
}

fn is(kind: &Value, value: &Value) -> bool {
    match kind.as_str().expect("a type") {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type of JSON Schema: {other}"),
    }
}

#[test]
fn the_schema_refuses_what_is_not_so() {
    use serde_json::json;
    let part = |value: Value| valid(&SCHEMA["$defs"]["part"], &value, "part");
    let tokens = json!({"index": 0, "ids": [5], "logprobs": [-0.5], "bytes": 3});
    part(json!({"tokens": tokens})).expect("a part");
    part(json!({"begun": {"index": 0}})).expect("a part");
    for (field, wrong) in [("ids", json!([-1])), ("ids", json!(5)), ("bytes", json!(1.5)), ("more", json!(1))] {
        let mut tokens = tokens.clone();
        tokens[field] = wrong;
        assert!(part(json!({"tokens": tokens})).is_err(), "{tokens}");
    }
    assert!(part(json!({"begun": {}})).is_err());
    assert!(part(json!({"begun": {"index": 0}, "tokens": tokens})).is_err());
    assert!(part(json!({"suspended": {"version": 1}})).is_err());
}
