//! Templates that loop, grow, nest or raise: one clear line each, in bounded time and memory.

use std::time::{Duration, Instant};

use anyfleet_text::{ChatInput, ChatTemplate, Error, SpecialTokens};
use serde_json::json;

fn render(source: &str) -> Result<String, Error> {
    let messages = json!([{"role": "user", "content": "Hi"}]);
    ChatTemplate::new(source)?.render(&ChatInput::new(&messages), &SpecialTokens::default())
}

/// Renders, and checks that the error is a limit, one line, and soon.
fn limited(source: &str) {
    let start = Instant::now();
    let error = render(source).expect_err(source);
    assert!(matches!(error, Error::TemplateLimit(_)), "{source}: {error}");
    assert!(!error.to_string().contains('\n'));
    assert!(start.elapsed() < Duration::from_secs(20), "{source} took {:?}", start.elapsed());
}

#[test]
fn endless_loops_run_out_of_steps() {
    limited("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}");
    limited("{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}");
    limited(
        "{% set ns = namespace(n=0) %}{% for i in range(99999) %}{% for j in range(99999) %}{% set ns.n = ns.n + 1 %}{% endfor %}{% endfor %}",
    );
}

#[test]
fn strings_do_not_grow_without_end() {
    let grown = |body: &str| {
        format!(
            "{{% set ns = namespace(s='aaaaaaaa') %}}{{% for i in range(99) %}}{body}{{% endfor %}}{{{{ ns.s|length }}}}"
        )
    };
    for body in [
        "{% set ns.s = ns.s ~ ns.s %}",
        "{% set ns.s = ns.s + ns.s %}",
        "{% set ns.s = ns.s * 9 %}",
        "{% set ns.s = ns.s|replace('a', 'aa') %}",
        "{% set ns.s = ns.s.replace('a', 'aa') %}",
        "{% set ns.s = [ns.s, ns.s]|join %}",
        "{% set ns.s = '%s%s' % (ns.s, ns.s) %}",
        "{% set ns.s = '{}{}'.format(ns.s, ns.s) %}",
        "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}",
        "{% set ns.s = [ns.s, ns.s]|string %}",
        "{% set ns.s = [ns.s, ns.s]|tojson %}",
    ] {
        limited(&grown(body));
    }
    limited("{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('aaaa' * 1000) }}");
    limited("{{ ('a' * 10000000)|replace('a', 'b' * 10000000) }}");
    limited(&format!("{{% set x %}}{{% for i in range(99999) %}}{}{{% endfor %}}{{% endset %}}", "y".repeat(100_000)));
    limited(&format!("{{% for i in range(99999) %}}{}{{% endfor %}}", "y".repeat(100_000)));
    // Many large strings, each within the limit of one.
    limited(
        "{% set ns = namespace(l=[], s='a' * 999999) %}{% for i in range(9999) %}{% set ns.l = ns.l + [ns.s|upper] %}{% endfor %}",
    );
    limited(
        "{% set ns = namespace(l=[], s='a' * 999999) %}{% for i in range(9999) %}{% set ns.l = ns.l + [ns.s[1:]] %}{% endfor %}",
    );
    // Lists, and text of a small list that holds itself many times over.
    limited("{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}{% endfor %}");
    limited("{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l * 9 %}{% endfor %}");
    limited(
        "{% set ns = namespace(l=[1]) %}{% for i in range(50) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
    );
    limited(
        "{% set ns = namespace(l=[1]) %}{% for i in range(50) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l|tojson }}",
    );
}

#[test]
fn widths_are_limited() {
    for source in [
        "{{ '%999999999d'|format(1) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ 'x'.ljust(999999999) }}",
        "{{ 'x'|indent(999999999, true) }}",
        "{{ [1]|tojson(indent=999999999) }}",
        "{{ range(999999999)|list }}",
        "{{ 'x' * 99999999999 }}",
        "{{ 10 ** 99999 }}",
    ] {
        let error = render(source).expect_err(source);
        assert!(!error.to_string().contains('\n'), "{error}");
    }
    assert_eq!(render("{{ 'x'|center(999999999)|length }}").unwrap(), "4096");
}

#[test]
fn nesting_is_limited_or_survived() {
    // Recursion without end.
    for source in [
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{% call f(n) %}{% endcall %}{% endmacro %}{{ f(1) }}",
        "{% include 'chat template' %}",
        "{% extends 'chat template' %}",
        "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    ] {
        assert!(!render(source).expect_err(source).to_string().contains('\n'));
    }
    // Brackets, tags and operators as deep as they go.
    for source in [
        format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000)),
        format!("{{{{ {}{} }}}}", "[".repeat(5000), "]".repeat(5000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(50_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(4900)),
        format!("{{{{ {}1 }}}}", "-".repeat(4900)),
        format!("{{{{ x{} }}}}", "|trim".repeat(2400)),
        format!("{{{{ 1{} }}}}", "**1".repeat(2400)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(1200)),
        format!("{{{{ 1{} }}}}", " is defined".repeat(2400)),
        format!("{{{{ x{} }}}}", ".y".repeat(2400)),
        format!("{{{{ x{} }}}}", "()".repeat(2400)),
        format!("{{{{ {}1 }}}}", "-".repeat(50_000)),
        format!("{}{}", "{% if 1 %}".repeat(5000), "{% endif %}".repeat(5000)),
        "{%if 1%}".repeat(130_000),
        format!("{{% if 1 %}}{}{{% endif %}}", "{%elif 1%}".repeat(100_000)),
        "{%set x%}".repeat(100_000),
        "{%for x in y%}".repeat(70_000),
        "{%macro x()%}".repeat(70_000),
        "{%filter x%}".repeat(80_000),
        "{%call x()%}".repeat(80_000),
        format!("{{{{ x{} }}}}", ".y".repeat(50_000)),
        format!("{{{{ x{} }}}}", "|trim".repeat(50_000)),
        format!("{{{{ 1{} }}}}", "+1".repeat(50_000)),
        format!("{{{{ 1{} }}}}", "**1".repeat(50_000)),
        format!("{{{{ 1{} }}}}", " if 1 else 1".repeat(50_000)),
        format!("{{{{ 1{} }}}}", " is defined".repeat(50_000)),
        format!("{{{{ 1{} }}}}", " and 1".repeat(50_000)),
    ] {
        if let Err(error) = render(&source) {
            assert!(!error.to_string().contains('\n'));
        }
    }
    // A list as deep as the steps allow is freed without overflowing the stack.
    let deep = format!("{{% set ns.l = {}ns.l{} %}}", "[".repeat(40), "]".repeat(40));
    limited(&format!("{{% set ns = namespace(l=[]) %}}{{% for i in range(99999) %}}{deep}{{% endfor %}}"));
}

/// What prints, compares or hashes a value recurses into it: neither a value that holds itself nor one that
/// holds itself many times over may come about.
#[test]
fn values_are_trees_of_bounded_size() {
    let nested = |step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(l=[1]) %}}{{% for i in range(99) %}}{{% set ns.l = {step} %}}{{% endfor %}}{end}"
        )
    };
    for end in [
        "{{ raise_exception(ns.l) }}",
        "{{ ns.l|upper }}",
        "{{ '%s' % (ns.l,) }}",
        "{{ '{}'.format(ns.l) }}",
        "{{ ns.l|pprint }}",
        "{{ ns.l is startingwith('x') }}",
        "{{ {ns.l: 1} }}",
        "{{ messages[0][ns.l] }}",
        "{{ ns.l in messages[0] }}",
        "{{ [ns.l]|unique|list }}",
    ] {
        limited(&nested("[ns.l, ns.l]", end));
    }
    for step in [
        "(ns.l, ns.l)",
        "ns.l, ns.l",
        "{'a': ns.l, 'b': ns.l}",
        "dict(a=ns.l, b=ns.l)",
        "ns.l|zip(ns.l)",
        "ns.l|zip(ns.l)|list",
        "ns.l|chain(ns.l)|list",
        "[ns.l] * 2",
        "[ns.l] + [ns.l]",
        "[[ns.l]]|batch(2, ns.l)|list",
    ] {
        limited(&nested(step, "{{ ns.l|upper }}"));
    }
    limited("{% set s = 'a' * 9999999 %}{% set l = [s] * 600000 %}{{ l|upper }}");
    limited("{% set s = 'a' * 9999999 %}{{ range(99999)|map(attribute='x', default=s)|list|upper }}");
    limited("{{ ('{0}' * 99999).format('a' * 999999) }}");
    limited("{{ ('%(a)s' * 99999) % {'a': 'a' * 999999} }}");
    limited("{{ [1]|batch(10**9, 'x')|list }}");
    limited("{{ [1]|slice(10**9)|list }}");
    for value in [
        "ns",
        "[ns]",
        "(ns, 1)",
        "ns, 1",
        "{'a': ns}",
        "dict(a=ns)",
        "namespace(a=ns)",
        "x|default(ns)",
        "[x]|map('default', ns)|list",
    ] {
        let source = format!("{{% set ns = namespace() %}}{{% set ns.a = {value} %}}{{{{ ns|upper }}}}");
        let error = render(&source).expect_err(&source).to_string();
        assert!(error.contains("cannot hold a namespace"), "{value}: {error}");
    }
    assert!(render("{{ debug() }}").is_err());
}

/// Few steps of which each takes long.
#[test]
fn time_is_limited() {
    limited("{% for i in range(99999) %}{% if range(99999)|sum %}{% endif %}{% endfor %}");
    limited(
        "{% set a = 'a' * 16000000 %}{% set b = 'a' * 16000000 %}{% for i in range(99999) %}{% if a == b %}{% endif %}{% endfor %}",
    );
}

#[test]
fn exceptions_are_one_line() {
    let error = render("a\n{{ raise_exception('Roles must\nalternate') }}").unwrap_err();
    assert_eq!(error.to_string(), "chat template: the template raised: Roles must alternate (line 2)");
    let error = render("{{ messages[0].a.b }}").unwrap_err();
    assert!(error.to_string().starts_with("chat template: "), "{error}");
    let error = render("{% for %}").unwrap_err();
    assert!(error.to_string().contains("line 1"), "{error}");
    for source in ["{{ messages.append(1) }}", "{{ messages[0].pop('role') }}", "{{ messages[0].update({}) }}", "{% if"]
    {
        assert!(matches!(render(source), Err(Error::Template(_))), "{source}");
    }
}
