//! A conversation, from what clients send to what chat templates expect.
use crate::ApiError;
use crate::fields::{not_among, wrong_type};
use serde_json::{Map, Value};

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// Checks the messages and makes each one's content a string and the arguments of its tool calls
/// objects, which is what templates are written for. All else stays as the client sent it.
pub(crate) fn normalize(messages: Value) -> Result<Vec<Value>, ApiError> {
    let messages = match messages {
        Value::Array(messages) => messages,
        other => return Err(wrong_type("messages", "an array", &other)),
    };
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "Invalid 'messages': the array is empty.").code("empty_array"));
    }
    messages.into_iter().enumerate().map(|(i, message)| one(&format!("messages[{i}]"), message)).collect()
}

fn one(param: &str, message: Value) -> Result<Value, ApiError> {
    let Value::Object(mut message) = message else { return Err(wrong_type(param, "an object", &message)) };
    let role = match message.get("role") {
        Some(Value::String(role)) if ROLES.contains(&role.as_str()) => role.clone(),
        Some(Value::String(role)) => return Err(not_among(&format!("{param}.role"), role, &ROLES)),
        Some(other) if !other.is_null() => return Err(wrong_type(&format!("{param}.role"), "a string", other)),
        _ => return Err(absent(format!("{param}.role"))),
    };
    if let Some(calls) = message.get_mut("tool_calls").filter(|calls| !calls.is_null()) {
        tool_calls(&format!("{param}.tool_calls"), calls)?;
    }
    let content = match message.get_mut("content").map(Value::take) {
        Some(Value::String(text)) => text,
        Some(Value::Array(parts)) => join_parts(&format!("{param}.content"), parts)?,
        None | Some(Value::Null) if role == "assistant" && answers_otherwise(&message) => String::new(),
        None | Some(Value::Null) => return Err(absent(format!("{param}.content"))),
        Some(other) => return Err(wrong_type(&format!("{param}.content"), "a string or an array of parts", &other)),
    };
    message.insert("content".into(), Value::String(content));
    // OpenAI's newer name for the same thing; templates know the older one.
    if role == "developer" {
        message.insert("role".into(), "system".into());
    }
    Ok(Value::Object(message))
}

/// Whether an assistant message says something besides its content.
fn answers_otherwise(message: &Map<String, Value>) -> bool {
    ["tool_calls", "refusal"].iter().any(|&field| message.get(field).is_some_and(|value| !value.is_null()))
}

fn absent(param: String) -> ApiError {
    let message = format!("Missing required parameter: '{param}'.");
    ApiError::invalid(param, message).code("missing_required_parameter")
}

/// The text of content parts, a line each.
fn join_parts(param: &str, parts: Vec<Value>) -> Result<String, ApiError> {
    let text = |(i, part): (usize, Value)| {
        let param = format!("{param}[{i}]");
        let field = match part["type"].as_str() {
            // vLLM takes a bare string for a part.
            None if part.is_string() => return Ok(part.as_str().unwrap_or_default().to_owned()),
            None => return Err(absent(format!("{param}.type"))),
            Some("text") => "text",
            Some("refusal") => "refusal",
            Some(other) => {
                let message =
                    format!("'{param}' is of type '{}', but this model takes only text.", crate::error::shorten(other));
                return Err(ApiError::unsupported(format!("{param}.type"), message));
            }
        };
        match part[field].as_str() {
            Some(text) => Ok(text.to_owned()),
            None => Err(absent(format!("{param}.{field}"))),
        }
    };
    Ok(parts.into_iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// OpenAI writes a call's arguments as a string of JSON; templates want the object.
fn tool_calls(param: &str, calls: &mut Value) -> Result<(), ApiError> {
    let Value::Array(calls) = calls else { return Err(wrong_type(param, "an array", calls)) };
    for (i, call) in calls.iter_mut().enumerate() {
        let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else {
            return Err(absent(format!("{param}[{i}].function")));
        };
        let Some(Value::String(text)) = function.get("arguments") else { continue };
        let arguments = match text.trim().is_empty() {
            true => Some(Value::Object(Map::new())),
            false => serde_json::from_str(text).ok().filter(Value::is_object),
        };
        let Some(arguments) = arguments else {
            let param = format!("{param}[{i}].function.arguments");
            let message = format!("Invalid '{param}': it must be a string that holds a JSON object.");
            return Err(ApiError::invalid(param, message).code("invalid_value"));
        };
        function.insert("arguments".into(), arguments);
    }
    Ok(())
}

/// Cuts a rendered conversation where its last message's text ends, so that the model continues it.
///
/// A template may trim the text, and writes an end marker after it.
pub(crate) fn cut_after_final_message(rendered: &mut String, messages: &[Value]) -> Result<(), ApiError> {
    let text = messages.last().and_then(|message| message["content"].as_str()).unwrap_or_default();
    let trimmed = text.trim();
    let Some(start) = rendered.rfind(trimmed).filter(|_| !trimmed.is_empty()) else {
        let message = "'continue_final_message' needs a last message whose text the chat template shows.";
        return Err(ApiError::invalid("continue_final_message", message));
    };
    let end = start + trimmed.len();
    let spacing = &text[text.trim_end().len()..];
    let kept = if rendered[end..].starts_with(spacing) { spacing.len() } else { 0 };
    rendered.truncate(end + kept);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn error(messages: Value) -> (String, String) {
        let e = normalize(messages).unwrap_err();
        (e.param.unwrap_or_default().into_owned(), e.message)
    }

    #[test]
    fn content_becomes_a_string() {
        let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
        let call = json!({"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}});
        let got = normalize(json!([
            {"role": "developer", "content": parts, "name": "me"},
            {"role": "assistant", "content": null, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ]));
        let got = got.unwrap();
        assert_eq!(got[0], json!({"role": "system", "content": "a\nb", "name": "me"}));
        assert_eq!(got[1]["content"], "");
        assert_eq!(got[1]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(got[2]["tool_call_id"], "1");
    }

    #[test]
    fn errors_name_the_place() {
        assert_eq!(error(json!([])).0, "messages");
        assert_eq!(error(json!("hi")).0, "messages");
        assert_eq!(error(json!(["hi"])).0, "messages[0]");
        assert_eq!(error(json!([{"content": "x"}])).0, "messages[0].role");
        assert_eq!(error(json!([{"role": "judge", "content": "x"}])).0, "messages[0].role");
        assert_eq!(error(json!([{"role": "user", "content": "x"}, {"role": "user"}])).0, "messages[1].content");
        assert_eq!(error(json!([{"role": "assistant", "content": null}])).0, "messages[0].content");
        assert_eq!(error(json!([{"role": "user", "content": 5}])).0, "messages[0].content");
        assert_eq!(
            error(json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])).0,
            "messages[0].content[0].type"
        );
        assert_eq!(error(json!([{"role": "user", "content": [{"type": "text"}]}])).0, "messages[0].content[0].text");
        let call = json!({"function": {"name": "f", "arguments": "[1]"}});
        assert_eq!(
            error(json!([{"role": "assistant", "tool_calls": [call]}])).0,
            "messages[0].tool_calls[0].function.arguments"
        );
    }

    #[test]
    fn the_final_message_is_left_open() {
        let messages = [json!({"role": "assistant", "content": "So  "})];
        for (rendered, expected) in [("<a>So  <end>", "<a>So  "), ("<a>So<end>", "<a>So")] {
            let mut text = rendered.to_owned();
            cut_after_final_message(&mut text, &messages).unwrap();
            assert_eq!(text, expected);
        }
        assert!(cut_after_final_message(&mut "<a><end>".to_owned(), &messages).is_err());
    }
}
