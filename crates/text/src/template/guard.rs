//! A source-to-source pass that makes a template meterable.
//!
//! The template engine counts instructions, but one instruction can double a string, and forty of those
//! fill any memory. Its operators cannot be replaced from outside, so the pass rewrites them into calls of
//! functions that keep an account: `a ~ b` becomes `__cat(a, b)`, `+`, `*` and `%` become `__add`, `__mul`
//! and `__mod`, a slice is wrapped in `__own`, and a long piece of literal text announces its length through
//! `__raw`; what a loop runs over goes through `__each`, a list, tuple or mapping through `__new`, what a
//! namespace is to hold through `__field`, and what is compared or looked up through `__now`, which watches
//! the clock. The functions also give these operators Python's meaning, errors included.
//!
//! Only precedence down to `+` matters for that; everything looser (comparisons, `and`, `if`, statement
//! keywords) passes through as it is written. `{% generation %}` blocks, which transformers' own extension
//! renders as their body in a scope of its own, become `{% with %}` blocks.

/// Literal text from this length on is accounted for; shorter pieces are bounded by the step limit.
const LONG_TEXT: usize = 64;
/// Nesting of brackets; the engine's own parser stops at 150.
const MAX_NESTING: usize = 100;
/// Tokens in one tag: the engine's parser recurses along chains of operators.
const MAX_TOKENS: usize = 5000;

/// Rewrites a template.
///
/// # Errors
/// The line of a tag or string that does not end, of brackets that do not match, or of a name that
/// begins with two underscores (those are this pass's own).
pub(super) fn rewrite(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len() + source.len() / 4);
    let mut rest = source;
    let line = |rest: &str| source[..source.len() - rest.len()].matches('\n').count() + 1;
    while let Some(at) = next_tag(rest) {
        text(&rest[..at], &mut out);
        rest = &rest[at..];
        let used = match &rest[..2] {
            "{#" => {
                let used = rest.find("#}").ok_or_else(|| format!("line {}: unclosed comment", line(rest)))? + 2;
                out.push_str(&rest[..used]);
                used
            }
            _ => tag(rest, &mut out).map_err(|e| format!("line {}: {e}", line(rest)))?,
        };
        rest = &rest[used..];
    }
    text(rest, &mut out);
    Ok(out)
}

/// Where the next tag begins.
fn next_tag(text: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = text[from..].find('{') {
        let at = from + at;
        if matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#')) {
            return Some(at);
        }
        from = at + 1;
    }
    None
}

/// Copies literal text. The account goes right after a visible character: whatever whitespace the tags
/// around the text strip, they strip the same. (Not after `{`, which would join its own.)
fn text(text: &str, out: &mut String) {
    let visible = text.char_indices().find(|(_, c)| !c.is_whitespace() && *c != '{');
    match visible {
        Some((at, c)) if text.len() >= LONG_TEXT => {
            let (head, tail) = text.split_at(at + c.len_utf8());
            out.push_str(head);
            out.push_str(&format!("{{{{ __raw({}) }}}}", text.len()));
            out.push_str(tail);
        }
        _ => out.push_str(text),
    }
}

/// Rewrites the tag that `source` begins with; returns its length.
fn tag(source: &str, out: &mut String) -> Result<usize, String> {
    let block = source.starts_with("{%");
    let signed = matches!(source.as_bytes().get(2), Some(b'-' | b'+'));
    let open = 2 + usize::from(signed);
    let tag = lex(&source[open..], if block { "%}" } else { "}}" })?;
    out.push_str(&source[..open]);
    let mut used = open + tag.used;
    match tag.tokens.as_slice() {
        [name] if block && name.text == "raw" => {
            out.push_str(&source[open..used]);
            let end = raw_end(&source[used..]).ok_or("unclosed raw block")?;
            out.push_str(&source[used..used + end]);
            return Ok(used + end);
        }
        [name] if block && matches!(name.text, "generation" | "endgeneration") => {
            out.push_str(name.space);
            out.push_str(if name.text == "generation" { "with" } else { "endwith" });
        }
        [name, rest @ ..] if block => {
            out.push_str(name.space);
            out.push_str(name.text);
            // What is assigned to is no expression.
            let target = match name.text {
                "for" => rest.iter().position(|t| t.text == "in" && t.kind == Kind::Name),
                "set" => rest.iter().position(|t| t.text == "=" && t.kind == Kind::Op),
                // The parameters that a `call` block takes.
                "call" if rest.first().is_some_and(|t| t.text == "(") => {
                    rest.iter().position(|t| t.text == ")" && t.kind == Kind::Op)
                }
                _ => None,
            };
            let (target, rest) = rest.split_at(target.map_or(0, |at| at + 1));
            target.iter().for_each(|t| out.extend([t.space, t.text]));
            let (source, rest) = match name.text {
                "for" => rest.split_at(loop_source(rest)),
                "set" if !target.is_empty() => (rest, &rest[..0]),
                _ => (&rest[..0], rest),
            };
            let value = Rewriter { tokens: source, at: 0 }.loose(0)?;
            // A second pair of brackets makes a tuple of `a, b` and nothing of anything else.
            match name.text {
                _ if source.is_empty() => {}
                "for" => out.push_str(&format!(" __each(({value}))")),
                _ if top_level_comma(source) => out.push_str(&format!(" __new(({value}))")),
                "set" if target.iter().any(|t| t.text == ".") => out.push_str(&format!(" __field({value})")),
                _ => out.push_str(&value),
            }
            out.push_str(&Rewriter { tokens: rest, at: 0 }.loose(0)?);
        }
        tokens => out.push_str(&Rewriter { tokens, at: 0 }.loose(0)?),
    }
    out.push_str(tag.tail);
    used = used.min(source.len());
    Ok(used)
}

/// The first token outside all brackets that satisfies `wanted`.
fn top_level(tokens: &[Token<'_>], wanted: impl Fn(&Token<'_>) -> bool) -> Option<usize> {
    let mut depth = 0usize;
    tokens.iter().position(|t| {
        match (t.kind, t.text) {
            (Kind::Op, "(" | "[" | "{") => depth += 1,
            (Kind::Op, ")" | "]" | "}") => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0 && wanted(t)
    })
}

fn top_level_comma(tokens: &[Token<'_>]) -> bool {
    top_level(tokens, |t| t.kind == Kind::Op && t.text == ",").is_some()
}

/// The number of tokens of what a `for` runs over: up to its condition or `recursive`.
fn loop_source(tokens: &[Token<'_>]) -> usize {
    let end = |t: &Token<'_>| t.kind == Kind::Name && matches!(t.text, "if" | "recursive");
    top_level(tokens, end).unwrap_or(tokens.len())
}

/// The length of a raw block's content and its end tag.
fn raw_end(text: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = text[from..].find("{%") {
        let start = from + at + 2;
        let inner = text[start..].trim_start_matches(['-', '+']).trim_start();
        if let Some(after) = inner.strip_prefix("endraw") {
            let close = after.trim_start().trim_start_matches(['-', '+']);
            if let Some(end) = close.strip_prefix("%}") {
                return Some(text.len() - end.len());
            }
        }
        from = start;
    }
    None
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Name,
    Literal,
    Op,
}

#[derive(Debug, Clone, Copy)]
struct Token<'a> {
    /// The whitespace before it.
    space: &'a str,
    text: &'a str,
    kind: Kind,
}

struct Tag<'a> {
    tokens: Vec<Token<'a>>,
    /// Whitespace, sign and closing delimiter.
    tail: &'a str,
    /// Length of everything, the closing delimiter included.
    used: usize,
}

fn lex<'a>(source: &'a str, close: &str) -> Result<Tag<'a>, String> {
    let mut tokens = Vec::new();
    let mut depth = 0usize;
    let mut at = 0;
    loop {
        let rest = &source[at..];
        let body = rest.trim_start();
        let space = &rest[..rest.len() - body.len()];
        if depth == 0 {
            let unsigned = body.strip_prefix(['-', '+']).unwrap_or(body);
            if let Some(after) = [body, unsigned].into_iter().find_map(|b| b.strip_prefix(close)) {
                let used = source.len() - after.len();
                return Ok(Tag { tokens, tail: &source[at..used], used });
            }
        }
        let first = body.chars().next().ok_or("unclosed tag")?;
        let (length, kind) = match first {
            '"' | '\'' => (string_length(body)?, Kind::Literal),
            c if c.is_alphabetic() || c == '_' => (name_length(body), Kind::Name),
            c if c.is_ascii_digit() => (number_length(body), Kind::Literal),
            c => {
                match c {
                    '(' | '[' | '{' => depth += 1,
                    ')' | ']' | '}' => depth = depth.checked_sub(1).ok_or("a bracket closes that none opened")?,
                    _ => {}
                }
                let two = ["**", "//", "==", "!=", "<=", ">="].into_iter().any(|op| body.starts_with(op));
                (if two { 2 } else { c.len_utf8() }, Kind::Op)
            }
        };
        let text = &body[..length];
        if kind == Kind::Name && text.starts_with("__") {
            return Err(format!("the name {text} is not allowed"));
        }
        tokens.push(Token { space, text, kind });
        if tokens.len() > MAX_TOKENS {
            return Err(format!("a tag of more than {MAX_TOKENS} tokens"));
        }
        at += space.len() + length;
    }
}

fn string_length(text: &str) -> Result<usize, String> {
    let quote = text.as_bytes()[0];
    let mut escaped = false;
    for (at, &b) in text.as_bytes().iter().enumerate().skip(1) {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            _ if b == quote => return Ok(at + 1),
            _ => {}
        }
    }
    Err("unclosed string".into())
}

fn name_length(text: &str) -> usize {
    text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len())
}

/// Digits with `_`, a fraction, an exponent, or a `0x` form.
fn number_length(text: &str) -> usize {
    let word = name_length(text);
    let exponent = |from: usize, word: usize| {
        let signed = text[from..word].ends_with(['e', 'E'])
            && !text.starts_with("0x")
            && text[word..].starts_with(['+', '-'])
            && text[word + 1..].starts_with(|c: char| c.is_ascii_digit());
        if signed { word + 1 + name_length(&text[word + 1..]) } else { word }
    };
    let fraction = text[word..].strip_prefix('.').filter(|f| f.starts_with(|c: char| c.is_ascii_digit()));
    match fraction {
        Some(f) => exponent(word + 1, word + 1 + name_length(f)),
        None => exponent(0, word),
    }
}

/// Words that are no operands.
const KEYWORDS: [&str; 8] = ["and", "or", "not", "in", "is", "if", "else", "recursive"];

/// Operators whose cost depends on the right operand.
const COMPARISONS: [&str; 6] = ["==", "!=", "<", "<=", ">", ">="];

struct Rewriter<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
}

impl<'a> Rewriter<'_, 'a> {
    fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    fn peek_is(&self, text: &str) -> bool {
        self.peek().is_some_and(|t| t.kind != Kind::Literal && t.text == text)
    }

    /// The next token with its whitespace.
    fn take(&mut self) -> Option<String> {
        let token = self.peek()?;
        self.at += 1;
        Some(format!("{}{}", token.space, token.text))
    }

    /// Anything up to a closing bracket or the end: operands rewritten, the rest as it is.
    fn loose(&mut self, depth: usize) -> Result<String, String> {
        if depth > MAX_NESTING {
            return Err(format!("brackets nest deeper than {MAX_NESTING} levels"));
        }
        let mut out = String::new();
        let mut compared = false;
        while let Some(token) = self.peek() {
            let operand = match token.kind {
                Kind::Name => !KEYWORDS.contains(&token.text),
                Kind::Literal => true,
                Kind::Op => matches!(token.text, "(" | "[" | "{" | "-" | "+"),
            };
            if matches!(token.text, ")" | "]" | "}") && token.kind == Kind::Op {
                break;
            } else if operand {
                let operand = self.sum(depth)?;
                out += &if compared { format!(" __now({operand})") } else { operand };
                compared = false;
            } else {
                compared = token.text == "in" || token.kind == Kind::Op && COMPARISONS.contains(&token.text);
                out += &self.take().unwrap_or_default();
            }
        }
        Ok(out)
    }

    /// `a + b - c`; a run of additions is one call.
    fn sum(&mut self, depth: usize) -> Result<String, String> {
        let mut left = self.concatenation(depth)?;
        loop {
            if self.peek_is("+") {
                left.insert_str(0, " __add(");
                while self.peek_is("+") {
                    self.at += 1;
                    left.push(',');
                    left += &self.concatenation(depth)?;
                }
                left.push(')');
            } else if self.peek_is("-") {
                let op = self.take().unwrap_or_default();
                left = format!(" ({left}{op}{})", self.concatenation(depth)?);
            } else {
                return Ok(left);
            }
        }
    }

    /// `a ~ b ~ c`
    fn concatenation(&mut self, depth: usize) -> Result<String, String> {
        let mut out = self.product(depth)?;
        let mut parts = 1;
        while self.peek_is("~") {
            self.at += 1;
            out = format!("{out},{}", self.product(depth)?);
            parts += 1;
        }
        Ok(if parts > 1 { format!(" __cat({out})") } else { out })
    }

    /// `a * b / c // d % e`
    fn product(&mut self, depth: usize) -> Result<String, String> {
        let mut left = self.power(depth)?;
        while let Some(op) = ["*", "/", "//", "%"].into_iter().find(|op| self.peek_is(op)) {
            self.at += 1;
            let right = self.power(depth)?;
            left = match op {
                "*" => format!(" __mul({left},{right})"),
                "%" => format!(" __mod({left},{right})"),
                _ => format!(" ({left} {op} {right})"),
            };
        }
        Ok(left)
    }

    /// `-a ** b`
    fn power(&mut self, depth: usize) -> Result<String, String> {
        let mut out = String::new();
        while self.peek_is("-") || self.peek_is("+") {
            let sign = self.take().unwrap_or_default();
            // The engine knows no unary plus, and it does nothing.
            out += if sign.ends_with('-') { &sign } else { " " };
        }
        out += &self.postfix(depth)?;
        while self.peek_is("**") {
            out += &self.take().unwrap_or_default();
            while self.peek_is("-") {
                out += &self.take().unwrap_or_default();
            }
            out += &self.postfix(depth)?;
        }
        Ok(out)
    }

    /// A primary with its attributes, items, calls, filters and tests.
    fn postfix(&mut self, depth: usize) -> Result<String, String> {
        let mut out = match self.peek() {
            Some(t) if t.kind == Kind::Op && matches!(t.text, "(" | "[" | "{") => {
                let from = self.at;
                let group = self.brackets(depth)?.0;
                let inner = &self.tokens[from + 1..self.at - 1];
                // Literals of constants are made once, when the template is compiled.
                let variable = inner.iter().any(|t| t.kind == Kind::Name);
                if variable && (t.text != "(" || top_level_comma(inner)) { format!(" __new({group})") } else { group }
            }
            Some(t) if t.kind != Kind::Op => {
                let mut out = self.take().unwrap_or_default();
                // Adjacent string literals are one string.
                while t.kind == Kind::Literal && self.peek().is_some_and(|t| t.kind == Kind::Literal) {
                    out += &self.take().unwrap_or_default();
                }
                out
            }
            Some(t) => return Err(format!("unexpected {:?}", t.text)),
            None => return Err("an expression is missing".into()),
        };
        loop {
            if self.peek_is(".") {
                out += &self.take().unwrap_or_default();
                out += &self.take().unwrap_or_default();
            } else if self.peek_is("(") {
                out += &self.brackets(depth)?.0;
            } else if self.peek_is("[") {
                let from = self.at;
                let (item, slice) = self.brackets(depth)?;
                let variable = self.tokens[from..self.at].iter().any(|t| t.kind == Kind::Name);
                match item.trim().strip_prefix('[').and_then(|key| key.strip_suffix(']')) {
                    _ if slice => out = format!(" __own({out}{item})"),
                    Some(key) if variable => out += &format!("[ __now({key})]"),
                    _ => out += &item,
                }
            } else if self.peek_is("|") {
                out += &self.take().unwrap_or_default();
                out += &self.take().unwrap_or_default();
            } else if self.peek_is("is") {
                out += &self.test(depth)?;
            } else {
                return Ok(out);
            }
        }
    }

    /// `is not name argument`, the argument with or without parentheses.
    fn test(&mut self, depth: usize) -> Result<String, String> {
        let mut out = self.take().unwrap_or_default();
        if self.peek_is("not") {
            out += &self.take().unwrap_or_default();
        }
        out += &self.take().unwrap_or_default();
        let bare = self.peek().is_some_and(|t| match t.kind {
            Kind::Name => !KEYWORDS.contains(&t.text),
            Kind::Literal => true,
            Kind::Op => matches!(t.text, "[" | "{"),
        });
        if bare {
            // The argument takes attributes and items, but no filter or further test.
            out += &match self.peek() {
                Some(t) if t.kind == Kind::Op => self.brackets(depth)?.0,
                _ => self.take().unwrap_or_default(),
            };
            while self.peek_is(".") {
                out += &self.take().unwrap_or_default();
                out += &self.take().unwrap_or_default();
            }
        }
        Ok(out)
    }

    /// A bracketed group, and whether it holds a colon of its own (in `[...]`: a slice).
    fn brackets(&mut self, depth: usize) -> Result<(String, bool), String> {
        let open = self.peek().map_or("", |t| t.text);
        let close = match open {
            "(" => ")",
            "[" => "]",
            _ => "}",
        };
        let mut out = self.take().unwrap_or_default();
        let mut inner = 0usize;
        let mut colon = false;
        for token in &self.tokens[self.at..] {
            match token.text {
                _ if token.kind != Kind::Op => {}
                "(" | "[" | "{" => inner += 1,
                ")" | "]" | "}" if inner == 0 => break,
                ")" | "]" | "}" => inner -= 1,
                ":" if inner == 0 => colon = true,
                _ => {}
            }
        }
        out += &self.loose(depth + 1)?;
        if !self.peek_is(close) {
            return Err(format!("{open} is not closed by {close}"));
        }
        out += &self.take().unwrap_or_default();
        Ok((out, colon && open == "["))
    }
}

#[cfg(test)]
mod tests {
    use super::rewrite;

    #[test]
    fn operators_become_calls() {
        for (source, expected) in [
            ("{{ a ~ b ~ 'x' }}", "{{ __cat( a, b, 'x') }}"),
            ("{{ a + b * c - d }}", "{{ ( __add( a, __mul( b, c)) - d) }}"),
            ("{%- set x = y[1:] + z -%}", "{%- set x = __add( __own( y[1:]), z) -%}"),
            (
                "{{ a|join(', ' ~ b) if c is not none else -d }}",
                "{{ a|join( __cat(', ', b)) if c is not none else -d }}",
            ),
            ("{% for k, v in m.items() %}", "{% for k, v in __each(( m.items())) %}"),
            ("{% for (k, v) in [a] %}", "{% for (k, v) in __each(( __new( [a]))) %}"),
            ("{% for x in a, b if x ~ y recursive %}", "{% for x in __each(( a, b)) if __cat( x, y) recursive %}"),
            ("{% call(k, v) f([a]) %}", "{% call(k, v) f( __new([a])) %}"),
            ("{% set (k, v) = a, b %}", "{% set (k, v) = __new(( a, b)) %}"),
            ("{{ f((a, b), [1, 'x'], {'k': c}) }}", "{{ f( __new((a, b)), [1, 'x'], __new( {'k': c})) }}"),
            ("{{ {'a': {}}}}", "{{ {'a': {}}}}"),
            ("{% raw %}{{ a ~ b }}{% endraw %}", "{% raw %}{{ a ~ b }}{% endraw %}"),
            ("{# a ~ b #}", "{# a ~ b #}"),
            (
                "{{ a == b ~ c and d not in e.f[g] }}",
                "{{ a == __now( __cat( b, c)) and d not in __now( e.f[ __now(g)]) }}",
            ),
            ("{% set ns.a = b if c else d %}", "{% set ns.a = __field( b if c else d) %}"),
            ("{%- generation %}x{% endgeneration -%}", "{%- with %}x{% endwith -%}"),
            ("{{ 'a}}' ~ \"%}\" -}}", "{{ __cat( 'a}}', \"%}\") -}}"),
            ("{{ x is divisibleby 3 and 1.5e-3 ~ y }}", "{{ x is divisibleby 3 and __cat( 1.5e-3, y) }}"),
            ("{ { %}", "{ { %}"),
        ] {
            assert_eq!(rewrite(source).unwrap().replace("  ", " "), expected);
        }
    }

    #[test]
    fn long_text_is_accounted_for() {
        let text = format!("  \n a{}", "b".repeat(100));
        assert_eq!(rewrite(&text).unwrap(), format!("  \n a{{{{ __raw(105) }}}}{}", "b".repeat(100)));
    }

    #[test]
    fn broken_tags_name_their_line() {
        assert_eq!(rewrite("a\n{{ 'b }}").unwrap_err(), "line 2: unclosed string");
        assert_eq!(rewrite("{{ (a }}").unwrap_err(), "line 1: a bracket closes that none opened");
        assert_eq!(rewrite("{{ (a").unwrap_err(), "line 1: unclosed tag");
        assert!(rewrite("{{ __cat(1) }}").unwrap_err().contains("__cat"));
        assert!(rewrite(&format!("{{{{ {} }}}}", "(".repeat(200) + &")".repeat(200))).is_err());
    }
}
