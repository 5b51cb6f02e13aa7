//! The template environment, on templates of its own.

use anyfleet_text::{ChatInput, ChatTemplate, Error, SpecialTokens};
use serde_json::{Value, json};

fn render_with(source: &str, input: &ChatInput<'_>) -> Result<String, Error> {
    let tokens = SpecialTokens::new([("bos_token", "<s>"), ("eos_token", "</s>")]);
    ChatTemplate::new(source)?.with_clock(|| 1_753_531_200).render(input, &tokens)
}

/// Renders with the variable `v`.
fn render(source: &str, v: Value) -> String {
    let messages = json!([]);
    let extra = json!({"v": v});
    let mut input = ChatInput::new(&messages);
    input.extra = extra.as_object();
    render_with(source, &input).unwrap()
}

/// Expected strings are what Jinja 3.1.6 prints in transformers' environment.
#[test]
fn values_print_as_in_python() {
    let v = json!({"b": 1, "a": [1.5, true, null, "it's", "q\"'\n"], "C": {}, "big": 1e20, "é": "✨"});
    let python = r#"{'b': 1, 'a': [1.5, True, None, "it's", 'q"\'\n'], 'C': {}, 'big': 1e+20, 'é': '✨'}"#;
    assert_eq!(render("{{ v }}", v.clone()), python);
    assert_eq!(render("{{ 'x' ~ v }}", v.clone()), format!("x{python}"));
    assert_eq!(
        render("{{ v|tojson }}", v.clone()),
        r#"{"b": 1, "a": [1.5, true, null, "it's", "q\"'\n"], "C": {}, "big": 1e+20, "é": "✨"}"#
    );
    assert_eq!(render("{{ (1,) }}{{ (1, 'a') }}{{ true }}{{ none }}{{ 1.0 }}", v.clone()), "(1,)(1, 'a')TrueNone1.0");
    assert_eq!(
        render("{{ v|tojson(indent=2) }}", json!({"a": [1, {}], "b": []})),
        "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}"
    );
    assert_eq!(
        render("{{ v|tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}", v),
        r#"{"C":{},"a":[1.5,true,null,"it's","q\"'\n"],"b":1,"big":1e+20,"\u00e9":"\u2728"}"#
    );
    assert_eq!(render("{{ v|tojson }}", json!("<&'\u{7f}\u{2028}/\\\u{1}>")), "\"<&'\u{7f}\u{2028}/\\\\\\u0001>\"");
}

#[test]
fn strings_have_python_methods() {
    for (source, expected) in [
        ("{{ '  a b '.strip() }}|{{ 'xxaxx'.strip('x') }}|{{ 'ab'.lstrip('a') }}|{{ 'ab'.rstrip('b') }}", "a b|a|b|a"),
        (
            "{{ 'a,b,c'.split(',') }}{{ ' a  b '.split() }}{{ 'a,b,c'.split(',', 1) }}{{ 'a,b,c'.rsplit(',', 1) }}",
            "['a', 'b', 'c']['a', 'b']['a', 'b,c']['a,b', 'c']",
        ),
        ("{{ ' a  b c '.split(none, 1) }}{{ ' a  b c '.rsplit(none, 1) }}", "['a', 'b c '][' a  b', 'c']"),
        ("{{ 'abc'.startswith(('x', 'a')) }}{{ 'abc'.endswith('bc') }}", "TrueTrue"),
        ("{{ \"they're bill's\".title() }}|{{ 'aBC d'.capitalize() }}|{{ 'a b'|title }}", "They'Re Bill'S|Abc d|A B"),
        ("{{ 'abc'[::-1] }}{{ [1, 2, 3][::-2] }}{{ [1, 2, 3][-2:] }}{{ 'abc'[-1] }}", "cba[3, 1][2, 3]c"),
        ("{{ 'a-b'.partition('-') }}{{ 'abc'.removeprefix('ab') }}{{ 'x'.zfill(3) }}", "('a', '-', 'b')c00x"),
        ("{{ '%s is %.1f' % ('pi', 3.14159) }} {{ -7 % 3 }} {{ -7 // 2 }} {{ 7 / 2 }}", "pi is 3.1 2 -4 3.5"),
        ("{{ 'a' ~ 1 * 2 }} {{ 10 - 2 - 3 }} {{ [1] + [2] }} {{ 2 * 'ab' }} {{ true + 1 }}", "a2 5 [1, 2] abab 2"),
        ("{{ '<b>'|safe + '<i>' }}{{ '<'|e }}", "<b>&lt;i&gt;&lt;"),
    ] {
        assert_eq!(render(source, Value::Null), expected, "{source}");
    }
}

#[test]
fn tests_know_python_types() {
    let source = "{% for x in v %}{{ [x is mapping, x is sequence, x is string, x is iterable, x is number, x is none]|map('int')|join }} {% endfor %}";
    assert_eq!(render(source, json!([{}, [], "s", 1, true, null])), "110100 010100 011100 000010 000010 000001 ");
    assert_eq!(
        render("{{ w is defined }}{{ w is none }}{{ w|default('d') }}{{ w }}{{ v.x }}", json!({})),
        "FalseFalsed"
    );
}

#[test]
fn statements_behave_as_in_jinja() {
    for (source, expected) in [
        (
            "{% for i in [1, 2, 3, 4] %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 4 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "13",
        ),
        ("{% generation %}a{% set x = 1 %}{% endgeneration %}{{ x }}b", "ab"),
        ("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}", "3"),
        ("{% macro m(a, b=2) %}[{{ a }}{{ b }}]{% endmacro %}{{ m(1) }}{{ m(1, b=3) }}", "[12][13]"),
        ("  {% if true %}\n  a\n  {% endif %}\nb\n", "  a\nb"),
        ("a {#- c -#} b {%- set x = 1 %}\nc", "abc"),
        ("{% raw %}{{ a ~ b }}{% endraw %}", "{{ a ~ b }}"),
        ("{{ strftime_now('%d %B %Y') }}{{ bos_token }}{{ pad_token }}", "26 July 2025<s>"),
        ("{{ {'a': {'b': 1}}.a.b }}{{ {'items': 2}.items()|list }}", "1[('items', 2)]"),
        ("{{ tools is none }}{{ documents is none }}{{ add_generation_prompt }}", "TrueTrueTrue"),
        ("{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}{% set a, b = 3, 4 %}{{ a }}{{ b }}", "1234"),
        ("{% macro w() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b) w() %}{{ b }}{{ a }}{% endcall %}", "21"),
    ] {
        assert_eq!(render(source, Value::Null), expected, "{source}");
    }
    let messages = json!([]);
    for source in [
        "{{ 'a' + 1 }}",
        "{{ 'a' + nope }}",
        "{{ none + 'a' }}",
        "{{ nope.x }}",
        "{{ 1 % 0 }}",
        "{{ 'a'|nope }}",
        "{{ nope|tojson }}",
    ] {
        assert!(render_with(source, &ChatInput::new(&messages)).is_err(), "{source}");
    }
}

/// A long literal text is rendered as it is, wherever whitespace control cuts into it.
#[test]
fn long_literals_keep_their_whitespace() {
    let long = "x".repeat(200);
    for (source, expected) in [
        (format!("{{% if true -%}}  \n {{ {long}  \n {{%- endif %}}"), format!("{{ {long}")),
        (format!("{{% if true %}}\n  {long}\n   {{% endif %}}\n!"), format!("  {long}\n!")),
        (format!("{{{{ 1 }}}}{{{long}{{{{ 2 }}}}"), format!("1{{{long}2")),
        (" ".repeat(200), " ".repeat(200)),
    ] {
        assert_eq!(render(&source, Value::Null), expected, "{source}");
    }
}

#[test]
fn templates_are_found_where_models_keep_them() {
    let dir = tempfile::tempdir().unwrap();
    let messages = json!([]);
    let tools = json!([{"name": "f"}]);
    let mut with_tools = ChatInput::new(&messages);
    with_tools.tools = Some(&tools);
    let render = |input: &ChatInput<'_>| {
        let template = ChatTemplate::from_dir(dir.path()).unwrap().unwrap();
        template.render(input, &SpecialTokens::default()).unwrap()
    };
    assert!(ChatTemplate::from_dir(dir.path()).unwrap().is_none());

    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("tokenizer_config.json", r#"{"bos_token": "<s>"}"#);
    assert!(ChatTemplate::from_dir(dir.path()).unwrap().is_none());
    write("tokenizer_config.json", r#"{"chat_template": "one"}"#);
    assert_eq!(render(&with_tools), "one");
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]}"#,
    );
    assert_eq!(render(&with_tools), "tools");
    assert_eq!(render(&ChatInput::new(&messages)), "plain");
    write("chat_template.json", r#"{"chat_template": "json"}"#);
    assert_eq!(render(&with_tools), "json");
    write("chat_template.jinja", "jinja");
    assert_eq!(render(&with_tools), "jinja");

    write("chat_template.jinja", "{% if %}");
    let error = ChatTemplate::from_dir(dir.path()).unwrap_err().to_string();
    assert!(error.contains("chat_template.jinja") && !error.contains('\n'), "{error}");
    std::fs::write(dir.path().join("chat_template.jinja"), [0xFF]).unwrap();
    assert!(ChatTemplate::from_dir(dir.path()).unwrap_err().to_string().contains("UTF-8"));
}

#[test]
fn templates_render_on_many_threads() {
    let template = ChatTemplate::new("{% for m in messages %}{{ m.content }}{% endfor %}").unwrap();
    std::thread::scope(|scope| {
        for n in 0..8 {
            let template = template.clone();
            scope.spawn(move || {
                let messages = json!([{"content": n}]);
                let text = template.render(&ChatInput::new(&messages), &SpecialTokens::default()).unwrap();
                assert_eq!(text, n.to_string());
            });
        }
    });
}
