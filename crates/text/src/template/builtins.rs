//! The filters, tests and functions of transformers' Jinja environment.

use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters, tests as engine};

use super::methods::{self, MAX_WIDTH};
use super::python::{self, Dumps, built, charge, charged, count_container, tick, weigh};

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}

/// Registers everything that differs from the engine's defaults or has to be accounted for.
pub(super) fn register(env: &mut Environment<'static>) {
    operators(env);
    counted_functions(env);
    text_filters(env);
    counted_filters(env);
    tests(env);
    env.add_function("cycler", minijinja_contrib::globals::cycler);
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("raise_exception", |message: Value| -> Result<Value, Error> {
        Err(invalid(format!("the template raised: {}", python::to_str(&message)?)))
    });
    // Not one of Jinja's; it prints everything there is.
    env.remove_global("debug");
}

/// What the guard pass calls instead of the engine's operators.
fn operators(env: &mut Environment<'static>) {
    env.add_function("__raw", |bytes: usize| charge(bytes).map(|()| ""));
    env.add_function("__own", |slice: Value| {
        // The engine slices a string one character at a time.
        charge(slice.as_str().map_or(0, |s| s.len().saturating_mul(8)))?;
        charged(slice)
    });
    env.add_function("__new", built);
    env.add_function("__field", |value: Value| match python::is_namespace(&value) {
        true => Err(invalid("a namespace cannot hold a namespace")),
        false => Ok(value),
    });
    env.add_function("__now", |value: Value| tick().map(|()| value));
    env.add_function("__each", |source: Value| match source.is_none() {
        true => Err(invalid("None is not iterable")),
        false => Ok(source),
    });
    env.add_function("__cat", |Rest(parts): Rest<Value>| {
        let mut out = python::Bounded::default();
        parts.iter().try_for_each(|part| out.push(part))?;
        out.finish()
    });
    env.add_function("__add", |Rest(terms): Rest<Value>| {
        let mut terms = terms.into_iter();
        let first = terms.next().unwrap_or_default();
        terms.try_fold(first, add)
    });
    env.add_function("__mul", mul);
    env.add_function("__mod", modulo);
}

/// The engine's `namespace` and `dict`, counted like every other container.
fn counted_functions(env: &mut Environment<'static>) {
    for (name, function) in [
        ("namespace", Value::from_function(minijinja::functions::namespace)),
        ("dict", Value::from_function(minijinja::functions::dict)),
    ] {
        env.add_function(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            args.iter().try_for_each(|arg| charge(weigh(arg)?))?;
            count_container()?;
            function.call(state, &args)
        });
    }
}

/// Python's number of a value; booleans are numbers.
enum Number {
    Int(i128),
    Float(f64),
}

fn number(value: &Value) -> Option<Number> {
    match value.kind() {
        ValueKind::Bool => Some(Number::Int(value.is_true().into())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Number::Int),
        ValueKind::Number => f64::try_from(value.clone()).ok().map(Number::Float),
        _ => None,
    }
}

fn arithmetic(
    a: &Value,
    b: &Value,
    int: fn(i128, i128) -> Option<i128>,
    float: fn(f64, f64) -> f64,
) -> Option<Result<Value, Error>> {
    let wide = |n: &Number| match n {
        Number::Int(n) => *n as f64,
        Number::Float(x) => *x,
    };
    Some(match (number(a)?, number(b)?) {
        (Number::Int(x), Number::Int(y)) => match int(x, y) {
            Some(n) => Ok(i64::try_from(n).map_or_else(|_| Value::from(n), Value::from)),
            None => Err(invalid("the number is too large")),
        },
        (x, y) => Ok(float(wide(&x), wide(&y)).into()),
    })
}

fn is_list(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable)
}

fn unsupported(op: &str, a: &Value, b: &Value) -> Error {
    if a.is_undefined() || b.is_undefined() {
        return Error::new(ErrorKind::UndefinedError, format!("an operand of {op} is undefined"));
    }
    invalid(format!("unsupported operand types for {op}: {} and {}", a.kind(), b.kind()))
}

fn add(a: Value, b: Value) -> Result<Value, Error> {
    if let Some(sum) = arithmetic(&a, &b, i128::checked_add, |x, y| x + y) {
        return sum;
    }
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        if a.is_safe() != b.is_safe() {
            // What is added to a string marked safe is escaped, as `markupsafe` does it.
            let escaped = |value: &Value, text: &str| if value.is_safe() { text.to_owned() } else { escape(text) };
            return charged(Value::from_safe_string(escaped(&a, x) + &escaped(&b, y)));
        }
        charge(x.len() + y.len())?;
        let sum = [x, y].concat();
        return Ok(if a.is_safe() { Value::from_safe_string(sum) } else { sum.into() });
    }
    if is_list(&a) && is_list(&b) && a.is_tuple() == b.is_tuple() {
        let items: Vec<Value> = a.try_iter()?.chain(b.try_iter()?).collect();
        // The sum weighs as much as the longer list, which was charged for before, and this.
        charge(items.len() * 24 + weigh(if a.len() > b.len() { &b } else { &a })?)?;
        count_container()?;
        return Ok(if a.is_tuple() { Tuple::new(items).into() } else { items.into() });
    }
    Err(unsupported("+", &a, &b))
}

fn mul(a: Value, b: Value) -> Result<Value, Error> {
    if let Some(product) = arithmetic(&a, &b, i128::checked_mul, |x, y| x * y) {
        return product;
    }
    let (repeated, count) = if matches!(number(&b), Some(Number::Int(_))) { (&a, &b) } else { (&b, &a) };
    let Some(Number::Int(count)) = number(count) else { return Err(unsupported("*", &a, &b)) };
    let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
    if let Some(text) = repeated.as_str() {
        charge(text.len().saturating_mul(count))?;
        let product = text.repeat(count);
        return Ok(if repeated.is_safe() { Value::from_safe_string(product) } else { product.into() });
    }
    if is_list(repeated) {
        let items: Vec<Value> = repeated.try_iter()?.collect();
        charge(weigh(repeated)?.saturating_mul(count))?;
        count_container()?;
        let all: Vec<Value> = std::iter::repeat_n(items, count).flatten().collect();
        return Ok(if repeated.is_tuple() { Tuple::new(all).into() } else { all.into() });
    }
    Err(unsupported("*", &a, &b))
}

/// Python's `%`: the remainder takes the sign of the divisor; on a string it is formatting.
fn modulo(a: Value, b: Value) -> Result<Value, Error> {
    if let Some(format) = a.as_str() {
        let args = if b.is_tuple() { b.try_iter()?.collect() } else { vec![b] };
        return printf(format, &args);
    }
    match (number(&a), number(&b)) {
        (Some(Number::Int(_) | Number::Float(_)), Some(Number::Int(0))) => Err(invalid("modulo by zero")),
        (Some(_), Some(Number::Float(0.0))) => Err(invalid("modulo by zero")),
        _ => arithmetic(
            &a,
            &b,
            |x, y| Some(x.checked_rem_euclid(y)? + if y < 0 && x.rem_euclid(y) != 0 { y } else { 0 }),
            |x, y| x - y * (x / y).floor(),
        )
        .unwrap_or_else(|| Err(unsupported("%", &a, &b))),
    }
}

fn printf(format: &str, args: &[Value]) -> Result<Value, Error> {
    methods::check_format(format, '%', args)?;
    minijinja::formatting::format(minijinja::formatting::FormatStyle::Printf, format, args)
        .and_then(|s| charged(s.into()))
}

/// Filters that write text, as Jinja and transformers write it.
fn text_filters(env: &mut Environment<'static>) {
    env.add_filter("tojson", tojson);
    env.add_filter("string", |value: Value| match value.kind() {
        ValueKind::String => Ok(value),
        _ => python::to_str(&value).map(Value::from),
    });
    env.add_filter("trim", |value: Value, chars: Option<&str>| {
        python::to_str(&value).map(|s| methods::strip(&s, chars, true, true))
    });
    env.add_filter("join", |value: Value, separator: Option<Value>, kwargs: Kwargs| {
        let separator = separator.or(kwargs.get("d")?).unwrap_or_else(|| "".into());
        let attribute: Option<Value> = kwargs.get("attribute")?;
        kwargs.assert_all_used()?;
        let value = match attribute {
            Some(name) => {
                let pick = |item: Value| item.get_item(&name);
                Value::from(value.try_iter()?.map(pick).collect::<Result<Vec<_>, _>>()?)
            }
            None if value.is_undefined() => Value::from(Vec::<Value>::new()),
            None => value,
        };
        methods::join(&value, &python::to_str(&separator)?, false)
    });
    env.add_filter("replace", |value: Value, old: Value, new: Value, count: Option<i64>| {
        let text = python::to_str(&value)?;
        methods::replace(&text, &python::to_str(&old)?, &python::to_str(&new)?, count)
    });
    env.add_filter("sum", |value: Value, attribute: Option<Value>, start: Option<Value>, kwargs: Kwargs| {
        let attribute = attribute.or(kwargs.get("attribute")?).filter(|name| !name.is_none());
        let start = start.or(kwargs.get("start")?).unwrap_or_else(|| 0.into());
        kwargs.assert_all_used()?;
        value.try_iter()?.try_fold(start, |sum, item| {
            tick()?;
            add(sum, attribute.as_ref().map_or(Ok(item.clone()), |name| item.get_item(name))?)
        })
    });
    env.add_filter("format", |format: &str, args: Rest<ValueOrKwargs>| printf(format, &args.into_values()));
    env.add_filter("indent", indent);
    env.add_filter("dictsort", dictsort);
    env.add_filter("center", |value: Value, width: Option<usize>| -> Result<String, Error> {
        let text = python::to_str(&value)?;
        let width = width.unwrap_or(80).min(MAX_WIDTH);
        let missing = width.saturating_sub(text.chars().count());
        let left = missing / 2 + (missing & width & 1);
        Ok(format!("{}{text}{}", " ".repeat(left), " ".repeat(missing - left)))
    });
    env.add_filter("wordcount", |value: Value| {
        let words = |s: String| s.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).count();
        python::to_str(&value).map(words)
    });
    for name in ["e", "escape", "forceescape"] {
        env.add_filter(name, move |value: Value| -> Result<Value, Error> {
            if value.is_safe() && name != "forceescape" {
                return Ok(value);
            }
            charged(Value::from_safe_string(escape(&python::to_str(&value)?)))
        });
    }
    for name in ["length", "count"] {
        env.add_filter(name, |value: Value| -> Result<usize, Error> {
            tick()?;
            match value.kind() {
                ValueKind::Undefined => Ok(0),
                _ => value.len().ok_or_else(|| invalid(format!("a value of type {} has no length", value.kind()))),
            }
        });
    }
    env.add_filter("float", |value: Value, default: Option<Value>| {
        tick()?;
        let text = || value.as_str().and_then(|s| s.trim().replace('_', "").parse::<f64>().ok());
        Ok::<_, Error>(match number(&value) {
            Some(Number::Int(n)) => Value::from(n as f64),
            Some(Number::Float(x)) => Value::from(x),
            None => text().map(Value::from).unwrap_or_else(|| default.unwrap_or_else(|| 0.0.into())),
        })
    });
    env.add_filter("int", |value: Value, default: Option<Value>| {
        tick()?;
        let text = || value.as_str().and_then(|s| s.trim().replace('_', "").parse::<f64>().ok());
        Ok::<_, Error>(match number(&value) {
            Some(Number::Int(n)) => i64::try_from(n).map_or_else(|_| Value::from(n), Value::from),
            Some(Number::Float(x)) if x.is_finite() => Value::from(x.trunc() as i64),
            _ => match text() {
                Some(x) if x.is_finite() => Value::from(x.trunc() as i64),
                _ => default.unwrap_or_else(|| 0.into()),
            },
        })
    });
}

/// `markupsafe.escape`.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '\'' => out += "&#39;",
            '"' => out += "&#34;",
            c => out.push(c),
        }
    }
    out
}

/// `tojson` as transformers replaces it: `json.dumps` without HTML escapes and without `ensure_ascii`.
fn tojson(value: Value, args: Rest<ValueOrKwargs>) -> Result<String, Error> {
    const NAMES: [&str; 4] = ["ensure_ascii", "indent", "separators", "sort_keys"];
    let mut args = args.into_values();
    let kwargs = args.pop_if(|v| v.is_kwargs());
    if args.len() > NAMES.len() {
        return Err(invalid("tojson takes at most four arguments"));
    }
    if let Some(kwargs) = &kwargs {
        for name in kwargs.try_iter()? {
            if !name.as_str().is_some_and(|n| NAMES.contains(&n)) {
                return Err(invalid(format!("tojson has no argument {name}")));
            }
        }
    }
    let argument = |at: usize| {
        let named = || kwargs.as_ref()?.get_attr(NAMES[at]).ok();
        args.get(at).cloned().or_else(named).filter(|v| !v.is_undefined() && !v.is_none())
    };
    let indent = match argument(1) {
        None => None,
        Some(text) if text.as_str().is_some() => text.as_str().map(String::from),
        Some(width) => Some(" ".repeat(usize::try_from(width).unwrap_or(0))),
    };
    if indent.as_ref().is_some_and(|i| i.len() > MAX_WIDTH) {
        return Err(invalid("tojson: the indent is too large"));
    }
    let (mut item_separator, mut key_separator) =
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(pair) = argument(2) {
        let pair: Vec<Value> = pair.try_iter()?.collect();
        let [item, key] = pair.as_slice() else {
            return Err(invalid("tojson: separators must be two strings"));
        };
        (item_separator, key_separator) = (python::to_str(item)?, python::to_str(key)?);
    }
    let options = Dumps {
        indent,
        item_separator,
        key_separator,
        ensure_ascii: argument(0).is_some_and(|v| v.is_true()),
        sort_keys: argument(3).is_some_and(|v| v.is_true()),
    };
    python::dumps(&value, &options)
}

/// Jinja's `dictsort(case_sensitive=False, by='key', reverse=False)`.
fn dictsort(value: Value, args: Rest<ValueOrKwargs>) -> Result<Value, Error> {
    const NAMES: [&str; 3] = ["case_sensitive", "by", "reverse"];
    let mut args = args.into_values();
    let mut named: Vec<(String, Value)> = Vec::new();
    if let Some(kwargs) = args.pop_if(|v| v.is_kwargs()) {
        for name in kwargs.try_iter()? {
            named.push((name.to_string(), kwargs.get_item(&name)?));
        }
    }
    named.extend(NAMES.iter().map(|n| n.to_string()).zip(args));
    filters::dictsort(&value, Kwargs::from_iter(named)).and_then(charged)
}

/// Jinja's `indent(width=4, first=False, blank=False)`; the width may be the indentation itself.
fn indent(
    value: Value,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let text = python::to_str(&value)?;
    let width = width.or(kwargs.get("width")?);
    let first = first.or(kwargs.get("first")?).unwrap_or(false);
    let blank = blank.or(kwargs.get("blank")?).unwrap_or(false);
    kwargs.assert_all_used()?;
    let indentation = match width {
        None => " ".repeat(4),
        Some(text) if text.as_str().is_some() => text.as_str().unwrap_or_default().to_owned(),
        Some(width) => " ".repeat(usize::try_from(width)?.min(MAX_WIDTH + 1)),
    };
    if indentation.len() > MAX_WIDTH {
        return Err(invalid("indent: the width is too large"));
    }
    let lines: Vec<&str> = text.split('\n').collect();
    charge(text.len() + lines.len() * indentation.len())?;
    let mut out = String::new();
    for (at, line) in lines.into_iter().enumerate() {
        if at > 0 {
            out.push('\n');
        }
        if if at == 0 { first } else { blank || !line.is_empty() } {
            out += &indentation;
        }
        out += line;
    }
    Ok(out)
}

/// The engine's own filters, with their results put on the account.
fn counted_filters(env: &mut Environment<'static>) {
    let mut counted = |name: &'static str, filter: Value| {
        env.add_filter(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
            let args = args.into_values();
            let iterates =
                matches!(name, "items" | "reverse" | "sort" | "list" | "batch" | "slice" | "groupby" | "unique");
            if iterates && args.first().is_some_and(Value::is_none) {
                return Err(invalid(format!("{name}: None is not iterable")));
            }
            tick()?;
            if matches!(name, "batch" | "slice") {
                // Both make as many places as they are told, and fill them.
                let count = args.get(1).and_then(Value::as_usize).unwrap_or(0);
                charge(count.saturating_mul(args.get(2).map_or(Ok(32), weigh)?))?;
            }
            let result = filter.call(state, &args).and_then(charged)?;
            // These can hold one value many times.
            if matches!(name, "map" | "zip" | "chain" | "groupby") { built(result) } else { Ok(result) }
        });
    };
    counted("lower", Value::from_function(filters::lower));
    counted("upper", Value::from_function(filters::upper));
    counted("title", Value::from_function(filters::title));
    counted("capitalize", Value::from_function(filters::capitalize));
    counted("items", Value::from_function(filters::items));
    counted("reverse", Value::from_function(filters::reverse));
    counted("split", Value::from_function(filters::split));
    counted("lines", Value::from_function(filters::lines));
    counted("sort", Value::from_function(filters::sort));
    counted("list", Value::from_function(filters::list));
    counted("batch", Value::from_function(filters::batch));
    counted("slice", Value::from_function(filters::slice));
    counted("select", Value::from_function(filters::select));
    counted("reject", Value::from_function(filters::reject));
    counted("selectattr", Value::from_function(filters::selectattr));
    counted("rejectattr", Value::from_function(filters::rejectattr));
    counted("map", Value::from_function(filters::map));
    counted("groupby", Value::from_function(filters::groupby));
    counted("unique", Value::from_function(filters::unique));
    counted("chain", Value::from_function(filters::chain));
    counted("zip", Value::from_function(filters::zip));
    counted("attr", Value::from_function(filters::attr));
    counted("first", Value::from_function(filters::first));
    counted("last", Value::from_function(filters::last));
    counted("min", Value::from_function(filters::min));
    counted("max", Value::from_function(filters::max));
    counted("pprint", Value::from_function(filters::pprint));
}

/// Tests where Jinja and the engine differ: Python's `bool` is a number, and strings, mappings and even
/// undefined values are sequences.
fn tests(env: &mut Environment<'static>) {
    let mut timed = |names: &[&'static str], test: Value| {
        for &name in names {
            let test = test.clone();
            env.add_test(name, move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
                tick()?;
                test.call(state, &args.into_values()).map(|result| result.is_true())
            });
        }
    };
    timed(&["eq", "equalto", "=="], Value::from_function(engine::is_eq));
    timed(&["ne", "!="], Value::from_function(engine::is_ne));
    timed(&["lt", "lessthan", "<"], Value::from_function(engine::is_lt));
    timed(&["le", "<="], Value::from_function(engine::is_le));
    timed(&["gt", "greaterthan", ">"], Value::from_function(engine::is_gt));
    timed(&["ge", ">="], Value::from_function(engine::is_ge));
    timed(&["in"], Value::from_function(engine::is_in));
    timed(&["startingwith"], Value::from_function(engine::is_startingwith));
    timed(&["endingwith"], Value::from_function(engine::is_endingwith));
    timed(&["lower"], Value::from_function(engine::is_lower));
    timed(&["upper"], Value::from_function(engine::is_upper));
    env.add_test("callable", |v: Value| v.kind() == ValueKind::Plain && !v.is_undefined());
    env.add_test("number", |v: Value| matches!(v.kind(), ValueKind::Number | ValueKind::Bool));
    env.add_test("sequence", |v: Value| {
        matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
    });
    env.add_test("iterable", |v: Value| {
        let kinds = [ValueKind::Seq, ValueKind::String, ValueKind::Map, ValueKind::Undefined, ValueKind::Iterable];
        kinds.contains(&v.kind())
    });
}
