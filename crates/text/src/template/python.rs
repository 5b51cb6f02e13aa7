//! How Python writes values: `str`, `repr`, `json.dumps`, and the account of what templates make.

use std::cell::Cell;
use std::fmt::{self, Write};
use std::time::{Duration, Instant};

use minijinja::value::ValueKind;
use minijinja::{Error, ErrorKind, Value};

/// Longest string that a template may build, and longest output: far beyond any context window.
pub(super) const MAX_TEXT: usize = 16 << 20;
/// Bytes of strings and lists that one rendering may build in all. A list counts with all it holds, as
/// often as it holds it, so nothing takes longer to walk or to write out than this.
const MAX_WORK: u64 = 128 << 20;
/// Time that one rendering may take.
pub(super) const MAX_TIME: Duration = Duration::from_secs(5);
/// Lists and mappings that one rendering may make.
const MAX_CONTAINERS: u64 = 1_000_000;
/// Nesting of a value that is made or written out: the engine prints, compares and frees by recursion.
const MAX_DEPTH: usize = 200;

thread_local! {
    /// What the rendering on this thread may still build; each has a thread of its own.
    static BUDGET: Cell<u64> = const { Cell::new(0) };
    static END: Cell<Option<Instant>> = const { Cell::new(None) };
    static CONTAINERS: Cell<u64> = const { Cell::new(0) };
}

/// Opens the account of a rendering.
pub(super) fn open_account() {
    BUDGET.set(MAX_WORK);
    END.set(Instant::now().checked_add(MAX_TIME));
    CONTAINERS.set(MAX_CONTAINERS);
}

/// Ends a rendering whose time is up. Everything that can take long in one step begins or ends with it.
pub(super) fn tick() -> Result<(), Error> {
    match END.get() {
        Some(end) if Instant::now() > end => {
            Err(Error::new(ErrorKind::OutOfFuel, format!("does not end within {} s", MAX_TIME.as_secs())))
        }
        _ => Ok(()),
    }
}

/// Takes `bytes` off the account.
pub(super) fn charge(bytes: usize) -> Result<(), Error> {
    tick()?;
    let left = BUDGET.get().checked_sub(bytes as u64);
    match left {
        Some(left) if bytes <= MAX_TEXT => {
            BUDGET.set(left);
            Ok(())
        }
        _ => Err(too_large()),
    }
}

/// The error of a text or account that is full; [`is_limit`] knows it.
fn too_large() -> Error {
    Error::new(ErrorKind::OutOfFuel, format!("builds more than {} MiB of text", MAX_TEXT >> 20))
}

/// Counts a list or mapping that is being made.
pub(super) fn count_container() -> Result<(), Error> {
    let left = CONTAINERS.get().checked_sub(1);
    let left = left.ok_or_else(|| {
        Error::new(ErrorKind::OutOfFuel, format!("makes more than {MAX_CONTAINERS} lists and mappings"))
    })?;
    CONTAINERS.set(left);
    Ok(())
}

/// Bytes of a value written out: its strings, and some for every list, mapping and number in it.
///
/// # Errors
/// More than one rendering may build, values nested too deep, or a namespace inside: that is changed in
/// place, so it could come to hold itself, and the engine recurses into what it compares or prints.
pub(super) fn weigh(value: &Value) -> Result<usize, Error> {
    let mut left = MAX_WORK as usize;
    weigh_into(value, &mut left, 0)?;
    Ok(MAX_WORK as usize - left)
}

fn weigh_into(value: &Value, left: &mut usize, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::OutOfFuel, format!("nests values more than {MAX_DEPTH} levels deep")));
    }
    let depth = depth + 1;
    let own = 32 + value.as_str().map_or(0, str::len);
    *left = left.checked_sub(own).ok_or_else(too_large)?;
    match value.kind() {
        _ if is_namespace(value) => {
            Err(Error::new(ErrorKind::InvalidOperation, "a list, mapping or namespace cannot hold a namespace"))
        }
        ValueKind::Seq => value.try_iter()?.try_for_each(|item| weigh_into(&item, left, depth)),
        ValueKind::Map => value.try_iter()?.try_for_each(|key| {
            weigh_into(&key, left, depth)?;
            weigh_into(&value.get_item(&key)?, left, depth)
        }),
        _ => Ok(()),
    }
}

/// Whether this is what `namespace()` makes.
pub(super) fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

/// Charges for a container that was just made of other values.
pub(super) fn built(value: Value) -> Result<Value, Error> {
    count_container()?;
    charge(weigh(&value)?)?;
    Ok(value)
}

/// Charges for a value that was just made: a string by its bytes, a list by its length.
pub(super) fn charged(value: Value) -> Result<Value, Error> {
    // What is made as it is read would hide what it holds.
    let value = match value.kind() {
        ValueKind::Iterable => value.try_iter()?.take(MAX_TEXT / 24).collect::<Vec<_>>().into(),
        _ => value,
    };
    let bytes = match value.kind() {
        ValueKind::String => value.as_str().map_or(0, str::len),
        ValueKind::Seq => value.len().unwrap_or(0).saturating_mul(24),
        _ => 0,
    };
    if value.as_object().is_some() {
        count_container()?;
    }
    charge(bytes)?;
    Ok(value)
}

/// A string that refuses to grow past [`MAX_TEXT`].
#[derive(Default)]
pub(super) struct Bounded {
    text: String,
    /// Lists and mappings visited, in bytes: a value that holds itself many times over is small, and
    /// takes exponentially long to write out.
    visited: usize,
}

impl Write for Bounded {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        if self.text.len() + self.visited + s.len() > MAX_TEXT {
            return Err(fmt::Error);
        }
        self.text.push_str(s);
        Ok(())
    }
}

impl Bounded {
    fn visit(&mut self) {
        self.visited += 32;
    }

    /// Appends Python's `str(value)`.
    pub(super) fn push(&mut self, value: &Value) -> Result<(), Error> {
        write_str(value, self).map_err(|_| too_large())
    }

    /// The text, charged.
    pub(super) fn finish(self) -> Result<String, Error> {
        charge(self.text.len())?;
        Ok(self.text)
    }
}

/// Python's `str(value)`.
pub(super) fn to_str(value: &Value) -> Result<String, Error> {
    let mut out = Bounded::default();
    out.push(value)?;
    out.finish()
}

fn write_str(value: &Value, out: &mut Bounded) -> fmt::Result {
    match value.as_str() {
        Some(text) => out.write_str(text),
        None if value.is_undefined() => Ok(()),
        None => write_repr(value, out, 0),
    }
}

/// Python's `repr(value)`.
fn write_repr(value: &Value, out: &mut Bounded, depth: usize) -> fmt::Result {
    if depth > MAX_DEPTH {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::Undefined => out.write_str("Undefined"),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(x) => out.write_str(&float(x)),
            Err(_) => write!(out, "{value}"),
        },
        ValueKind::String => string_repr(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            out.visit();
            let tuple = value.is_tuple();
            out.write_char(if tuple { '(' } else { '[' })?;
            let mut count = 0;
            for item in value.try_iter().map_err(|_| fmt::Error)? {
                if count > 0 {
                    out.write_str(", ")?;
                }
                write_repr(&item, out, depth + 1)?;
                count += 1;
            }
            if tuple && count == 1 {
                out.write_char(',')?;
            }
            out.write_char(if tuple { ')' } else { ']' })
        }
        ValueKind::Map => {
            out.visit();
            out.write_char('{')?;
            for (at, key) in value.try_iter().map_err(|_| fmt::Error)?.enumerate() {
                if at > 0 {
                    out.write_str(", ")?;
                }
                write_repr(&key, out, depth + 1)?;
                out.write_str(": ")?;
                write_repr(&value.get_item(&key).unwrap_or_default(), out, depth + 1)?;
            }
            out.write_char('}')
        }
        _ => write!(out, "{value}"),
    }
}

/// Python's `repr(float)`: the shortest digits that read back, positional for exponents from -4 to 15.
fn float(x: f64) -> String {
    if x.is_nan() {
        return "nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "inf" } else { "-inf" }.into();
    }
    let scientific = format!("{x:e}");
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{x}");
        return if plain.contains('.') { plain } else { plain + ".0" };
    }
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

/// Python's `repr(str)`.
fn string_repr(text: &str, out: &mut Bounded) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            c if c == quote => write!(out, "\\{c}")?,
            c if is_printable(c) => out.write_char(c)?,
            c => match c as u32 {
                code @ ..=0xFF => write!(out, "\\x{code:02x}")?,
                code @ ..=0xFFFF => write!(out, "\\u{code:04x}")?,
                code => write!(out, "\\U{code:08x}")?,
            },
        }
    }
    out.write_char(quote)
}

/// Close to `str.isprintable`: not the control, format, surrogate, private-use and separator characters
/// that occur in practice.
fn is_printable(c: char) -> bool {
    if c == ' ' {
        return true;
    }
    !c.is_control()
        && !c.is_whitespace()
        && !matches!(c, '\u{AD}' | '\u{600}'..='\u{605}' | '\u{61C}' | '\u{200B}'..='\u{200F}' | '\u{202A}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}' | '\u{E000}'..='\u{F8FF}' | '\u{FEFF}' | '\u{FFF9}'..='\u{FFFB}'
            | '\u{E0000}'..)
}

/// Options of `json.dumps`.
pub(super) struct Dumps {
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub ensure_ascii: bool,
    pub sort_keys: bool,
}

/// Python's `json.dumps(value)`.
pub(super) fn dumps(value: &Value, options: &Dumps) -> Result<String, Error> {
    let mut out = Bounded::default();
    dump(value, options, &mut out, 0)?;
    out.finish()
}

fn dump(value: &Value, options: &Dumps, out: &mut Bounded, depth: usize) -> Result<(), Error> {
    let full = |_: fmt::Error| too_large();
    if depth > MAX_DEPTH {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: the value nests too deep"));
    }
    match value.kind() {
        ValueKind::None => out.write_str("null").map_err(full),
        ValueKind::Bool => out.write_str(if value.is_true() { "true" } else { "false" }).map_err(full),
        ValueKind::Number => out.write_str(&json_number(value)).map_err(full),
        ValueKind::String => json_string(value.as_str().unwrap_or_default(), options, out).map_err(full),
        ValueKind::Seq => {
            let items: Vec<Value> = value.try_iter()?.collect();
            container(options, out, depth, ('[', ']'), items.len(), |at, out| dump(&items[at], options, out, depth + 1))
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if options.sort_keys {
                keys.sort();
            }
            container(options, out, depth, ('{', '}'), keys.len(), |at, out| {
                let key = &keys[at];
                let name = match key.kind() {
                    ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                    ValueKind::None => "null".into(),
                    ValueKind::Bool => if key.is_true() { "true" } else { "false" }.into(),
                    ValueKind::Number => json_number(key),
                    other => {
                        let message = format!("tojson: keys must be strings or numbers, not {other}");
                        return Err(Error::new(ErrorKind::InvalidOperation, message));
                    }
                };
                json_string(&name, options, out).map_err(full)?;
                out.write_str(&options.key_separator).map_err(full)?;
                dump(&value.get_item(key)?, options, out, depth + 1)
            })
        }
        other => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("tojson: a value of type {other} is not JSON serializable"),
        )),
    }
}

/// A list or object with `len` elements, on one line or indented.
fn container(
    options: &Dumps,
    out: &mut Bounded,
    depth: usize,
    brackets: (char, char),
    len: usize,
    mut element: impl FnMut(usize, &mut Bounded) -> Result<(), Error>,
) -> Result<(), Error> {
    let full = |_: fmt::Error| too_large();
    let newline = |out: &mut Bounded, depth: usize| -> fmt::Result {
        if let Some(indent) = &options.indent {
            out.write_char('\n')?;
            for _ in 0..depth {
                out.write_str(indent)?;
            }
        }
        Ok(())
    };
    out.visit();
    out.write_char(brackets.0).map_err(full)?;
    for at in 0..len {
        if at > 0 {
            out.write_str(&options.item_separator).map_err(full)?;
        }
        newline(out, depth + 1).map_err(full)?;
        element(at, out)?;
    }
    if len > 0 {
        newline(out, depth).map_err(full)?;
    }
    out.write_char(brackets.1).map_err(full)
}

fn json_number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(x) if x.is_nan() => "NaN".into(),
        Ok(x) if x.is_infinite() => if x > 0.0 { "Infinity" } else { "-Infinity" }.into(),
        Ok(x) => float(x),
        Err(_) => value.to_string(),
    }
}

fn json_string(text: &str, options: &Dumps, out: &mut Bounded) -> fmt::Result {
    out.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => out.write_str("\\\"")?,
            '\\' => out.write_str("\\\\")?,
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            '\u{8}' => out.write_str("\\b")?,
            '\u{c}' => out.write_str("\\f")?,
            '\0'..='\u{1f}' => write!(out, "\\u{:04x}", c as u32)?,
            // 0x7F is written as it is, without ensure_ascii and with it.
            c if options.ensure_ascii && !c.is_ascii() => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
            c => out.write_char(c)?,
        }
    }
    out.write_char('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_print_as_in_python() {
        for (x, expected) in [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (0.0001, "0.0001"),
            (-2.5e300, "-2.5e+300"),
            (-0.0, "-0.0"),
            (f64::NEG_INFINITY, "-inf"),
        ] {
            assert_eq!(float(x), expected);
        }
    }
}
