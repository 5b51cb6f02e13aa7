//! Methods of Python's `str`, `list` and `dict`, as far as the sandbox of transformers allows them: what
//! would change a value in place (`append`, `pop`, `update`) is an error there, and here.

use std::collections::HashSet;

use minijinja::value::{Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::python::{Bounded, charge, charged, tick, weigh};

/// Padding beyond this is an attack, not a layout.
pub(super) const MAX_WIDTH: usize = 4096;

/// Called by the engine for every method that a value does not bring itself.
pub(super) fn call(state: &mut State<'_, '_>, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    tick()?;
    let found = match value.kind() {
        ValueKind::String => string(value.as_str().unwrap_or_default(), name, args)?,
        ValueKind::Seq if name == "index" => Some(index(value, args)?),
        ValueKind::Seq | ValueKind::Map if name == "copy" => Some(value.clone()),
        _ => None,
    };
    let result = match found {
        Some(result) => result,
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)?,
    };
    match result.as_str() {
        Some(text) if value.is_safe() => charged(Value::from_safe_string(text.to_owned())),
        _ => charged(result),
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

fn index(list: &Value, args: &[Value]) -> Result<Value, Error> {
    let (wanted,): (&Value,) = from_args(args)?;
    for (at, item) in list.try_iter()?.enumerate() {
        if item == *wanted {
            return Ok(at.into());
        }
    }
    Err(invalid("index: the value is not in the list"))
}

/// `str.isspace` of one character: Unicode whitespace and the four ASCII separators.
pub(super) fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

/// `str.strip` and its one-sided forms.
pub(super) fn strip(text: &str, chars: Option<&str>, left: bool, right: bool) -> String {
    let set: Option<HashSet<char>> = chars.map(|chars| chars.chars().collect());
    let drop = |c: char| set.as_ref().map_or(is_space(c), |set| set.contains(&c));
    let mut text = text;
    if left {
        text = text.trim_start_matches(drop);
    }
    if right {
        text = text.trim_end_matches(drop);
    }
    text.to_owned()
}

/// A method of `str`; `None` for those that the engine's own compatibility layer has right.
fn string(s: &str, name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match name {
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            strip(s, chars, name != "rstrip", name != "lstrip").into()
        }
        "split" | "rsplit" => split(s, name == "rsplit", args)?,
        "splitlines" => {
            let (keep,): (Option<bool>,) = from_args(args)?;
            split_lines(s, keep.unwrap_or(false)).into_iter().map(Value::from).collect::<Vec<_>>().into()
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            s.strip_prefix(prefix).unwrap_or(s).into()
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            s.strip_suffix(suffix).unwrap_or(s).into()
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            if separator.is_empty() {
                return Err(invalid(format!("{name}: empty separator")));
            }
            let parts = match name {
                "partition" => s.split_once(separator).map_or([s, "", ""], |(a, b)| [a, separator, b]),
                _ => s.rsplit_once(separator).map_or(["", "", s], |(a, b)| [a, separator, b]),
            };
            Tuple::new(parts.into_iter().map(Value::from).collect()).into()
        }
        "title" => cased(s, |start, c| if start { upper(c) } else { c.to_lowercase().collect() }).into(),
        "capitalize" => {
            let mut chars = s.chars();
            chars.next().map_or(String::new(), |c| upper(c) + &chars.as_str().to_lowercase()).into()
        }
        "swapcase" => {
            let swap = |c: char| if c.is_uppercase() { c.to_lowercase().collect::<String>() } else { upper(c) };
            s.chars().map(swap).collect::<String>().into()
        }
        "casefold" => s.to_lowercase().replace('ß', "ss").into(),
        "istitle" => (cased(s, |start, c| if start { upper(c) } else { c.to_lowercase().collect() }) == s
            && s.chars().any(char::is_alphabetic))
        .into(),
        "isdecimal" => (!s.is_empty() && s.chars().all(|c| c.is_ascii_digit())).into(),
        "zfill" | "ljust" | "rjust" | "center" => pad(s, name, args)?.into(),
        "index" | "rindex" => {
            let (what,): (&str,) = from_args(args)?;
            let found = if name == "index" { s.find(what) } else { s.rfind(what) };
            let at = found.ok_or_else(|| invalid(format!("{name}: substring not found")))?;
            s[..at].chars().count().into()
        }
        "replace" => {
            let (old, new, Rest(rest)): (&str, &str, Rest<Value>) = from_args(args)?;
            let count = rest.first().and_then(Value::as_i64);
            replace(s, old, new, count)?.into()
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            join(items, s, true)?.into()
        }
        "format" => {
            check_format(s, '{', args)?;
            return Ok(None);
        }
        _ => return Ok(None),
    }))
}

fn upper(c: char) -> String {
    c.to_uppercase().collect()
}

/// Maps letters by whether they begin a word, as `str.title` understands words.
fn cased(s: &str, mut map: impl FnMut(bool, char) -> String) -> String {
    let mut inside = false;
    let mut out = String::with_capacity(s.len());
    for c in s.chars() {
        let letter = c.is_lowercase() || c.is_uppercase();
        if letter {
            out += &map(!inside, c);
        } else {
            out.push(c);
        }
        inside = letter;
    }
    out
}

fn split(s: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (separator, limit): (Option<Value>, Option<Value>) = split_args(args)?;
    let limit = limit.and_then(|v| v.as_i64()).filter(|n| *n >= 0).map(|n| n as usize);
    let separator = separator.filter(|v| !v.is_none());
    let parts: Vec<String> = match separator.as_ref().map(|v| v.as_str()) {
        Some(None) => return Err(invalid("split: the separator must be a string")),
        Some(Some("")) => return Err(invalid("split: empty separator")),
        Some(Some(separator)) => {
            let n = limit.map_or(usize::MAX, |n| n.saturating_add(1));
            if from_right {
                let mut parts: Vec<&str> = s.rsplitn(n, separator).collect();
                parts.reverse();
                parts.into_iter().map(String::from).collect()
            } else {
                s.splitn(n, separator).map(String::from).collect()
            }
        }
        None => split_whitespace(s, from_right, limit.unwrap_or(usize::MAX)),
    };
    charge(parts.iter().map(|p| p.len() + 24).sum())?;
    Ok(parts.into_iter().map(Value::from).collect::<Vec<_>>().into())
}

fn split_args(args: &[Value]) -> Result<(Option<Value>, Option<Value>), Error> {
    let mut rest = args.to_vec();
    let (mut separator, mut limit) = (None, None);
    if let Some(kwargs) = rest.pop_if(|v| v.is_kwargs()) {
        separator = kwargs.get_attr("sep").ok().filter(|v| !v.is_undefined());
        limit = kwargs.get_attr("maxsplit").ok().filter(|v| !v.is_undefined());
    }
    let mut rest = rest.into_iter();
    Ok((rest.next().or(separator), rest.next().or(limit)))
}

/// `str.split` and `str.rsplit` without a separator; the rest beyond `limit` keeps its far whitespace.
fn split_whitespace(s: &str, from_right: bool, limit: usize) -> Vec<String> {
    let mut parts = Vec::new();
    let mut rest = if from_right { s.trim_end_matches(is_space) } else { s.trim_start_matches(is_space) };
    while !rest.is_empty() {
        let found = if from_right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(at) = found.filter(|_| parts.len() < limit) else {
            parts.push(rest.to_owned());
            break;
        };
        if from_right {
            let width = rest[at..].chars().next().map_or(1, char::len_utf8);
            parts.push(rest[at + width..].to_owned());
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            parts.push(rest[..at].to_owned());
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    if from_right {
        parts.reverse();
    }
    parts
}

/// `str.splitlines`: all of Unicode's line boundaries.
fn split_lines(s: &str, keep: bool) -> Vec<String> {
    let boundary = |c: char| {
        matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let mut lines = Vec::new();
    let mut rest = s;
    while let Some(at) = rest.find(boundary) {
        let mut end = at + rest[at..].chars().next().map_or(1, char::len_utf8);
        if rest[at..].starts_with("\r\n") {
            end = at + 2;
        }
        lines.push(rest[..if keep { end } else { at }].to_owned());
        rest = &rest[end..];
    }
    if !rest.is_empty() {
        lines.push(rest.to_owned());
    }
    lines
}

fn pad(s: &str, name: &str, args: &[Value]) -> Result<String, Error> {
    let (width, fill): (usize, Option<&str>) = from_args(args)?;
    if width > MAX_WIDTH {
        return Err(invalid(format!("{name}: a width of {width} is too large, the limit is {MAX_WIDTH}")));
    }
    let missing = width.saturating_sub(s.chars().count());
    let fill = fill.unwrap_or(if name == "zfill" { "0" } else { " " });
    let (left, right) = match name {
        "ljust" => (0, missing),
        "center" => {
            // CPython's rounding: the odd character goes left when the width is odd.
            let left = missing / 2 + (missing & width & 1);
            (left, missing - left)
        }
        _ => (missing, 0),
    };
    if name == "zfill" && s.starts_with(['-', '+']) {
        return Ok(format!("{}{}{}", &s[..1], "0".repeat(missing), &s[1..]));
    }
    Ok(format!("{}{s}{}", fill.repeat(left), fill.repeat(right)))
}

/// `str.replace`, refusing a result beyond the limit before it is built.
pub(super) fn replace(s: &str, old: &str, new: &str, count: Option<i64>) -> Result<String, Error> {
    let count = count.filter(|n| *n >= 0).map_or(usize::MAX, |n| n as usize);
    let matches = s.matches(old).take(count).count();
    charge(s.len().saturating_add(matches.saturating_mul(new.len())))?;
    Ok(s.replacen(old, new, count))
}

/// `separator.join(items)`; the method takes strings only, the filter writes out anything.
pub(super) fn join(items: &Value, separator: &str, strings_only: bool) -> Result<String, Error> {
    if items.is_none() {
        return Err(invalid("join: None is not iterable"));
    }
    let mut out = Bounded::default();
    let separator = Value::from(separator);
    for (at, item) in items.try_iter()?.enumerate() {
        if strings_only && item.as_str().is_none() {
            return Err(invalid(format!("join: item {at} is {}, it must be a string", item.kind())));
        }
        if at > 0 {
            out.push(&separator)?;
        }
        out.push(&item)?;
    }
    out.finish()
}

/// Refuses format strings that ask for absurd widths, or for their arguments many times over; `mark`
/// begins a place for one.
pub(super) fn check_format(format: &str, mark: char, args: &[Value]) -> Result<(), Error> {
    let weight = args.iter().try_fold(0, |sum, arg| Ok::<_, Error>(weigh(arg)? + sum))?;
    charge(format.matches(mark).count().saturating_mul(weight))?;
    let mut digits = 0;
    for c in format.chars() {
        digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
        if digits > 3 {
            return Err(invalid("format: a width or precision of more than three digits"));
        }
        if c == '*' {
            return Err(invalid("format: a width from the arguments (*) is not supported"));
        }
    }
    Ok(())
}
