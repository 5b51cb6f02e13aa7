//! Chat templates: those that do not parse stop the start, those that do not end stop at their own request.
use crate::checkpoint::Checkpoint;
use crate::http::{Reply, post};
use crate::process::{Refusals, Server, verbose};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const FILE: &str = "chat_template.jinja";
/// A template that does not end is stopped in a second or two; this allows for a busy machine.
const BOUND: Duration = Duration::from_secs(20);

fn with_template(source: &str) -> Checkpoint {
    Checkpoint::chat().write(FILE, source)
}

fn chat(server: &Server, model: &str, more: Value) -> Reply {
    let mut body = json!({"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2});
    for (key, value) in more.as_object().into_iter().flatten() {
        body[key] = value.clone();
    }
    post(&server.address, "/v1/chat/completions", body.to_string().as_bytes())
}

#[test]
fn templates_that_do_not_parse() {
    let mut refusals = Refusals::default();
    for (name, source) in [
        ("an open tag", "{% if"),
        ("an open block", "{% for m in messages %}"),
        ("a block that ends twice", "{% endfor %}"),
        ("no expression", "{{ }}"),
        ("an operator without operands", "{{ + }}"),
        ("an open string", "{{ 'x }}"),
        ("an unknown statement", "{% explode %}"),
        ("our own names", "{{ __cat(1) }}"),
        ("Python's insides", "{{ ''.__class__.__mro__ }}"),
        ("brackets", &format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000))),
        ("blocks in blocks", &"{% if 1 %}".repeat(50_000)),
        ("a chain of operators", &format!("{{{{ 1{} }}}}", " and 1".repeat(100_000))),
        ("two megabytes", &"x".repeat(2 << 20)),
    ] {
        refusals.model(name, with_template(source).path(), &[FILE]);
        if source.len() < 100 {
            let checkpoint = Checkpoint::chat().edit("tokenizer_config.json", |c| c["chat_template"] = json!(source));
            refusals.model(name, checkpoint.path(), &["tokenizer_config.json", "template"]);
        }
    }
    refusals.model("no UTF-8", Checkpoint::chat().write(FILE, b"{{ '\xff' }}").path(), &[FILE, "UTF-8"]);
    for shape in [json!(5), json!({}), json!([]), json!([{"name": "default"}]), json!([1]), json!(true)] {
        let checkpoint = Checkpoint::chat().edit("tokenizer_config.json", |c| c["chat_template"] = shape.clone());
        refusals.model(
            &format!("chat_template {shape}"),
            checkpoint.path(),
            &["tokenizer_config.json", "chat_template"],
        );
    }
    refusals.done();
}

/// Loops, bombs and recursion: each has a server of its own, which must go on answering.
#[test]
fn templates_that_do_not_end() {
    let grow = |step: &str| {
        format!(
            "{{% set ns = namespace(s='aaaaaaaa', l=[1]) %}}{{% for i in range(99) %}}{step}{{% endfor %}}{{{{ ns.s }}}}"
        )
    };
    let nest = |step: &str, end: &str| {
        format!(
            "{{% set ns = namespace(l=[1]) %}}{{% for i in range(99) %}}{{% set ns.l = {step} %}}{{% endfor %}}{end}"
        )
    };
    let sources = [
        "{% for i in range(10**9) %}x{% endfor %}".to_owned(),
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}".into(),
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ i * j }}{% endfor %}{% endfor %}".into(),
        "{{ range(10**9) | list }}".into(),
        "{{ range(99999) | list | map('string') | join | length }}{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}".into(),
        "{% for i in range(9999) %}{{ range(99999) | list | tojson }}{% endfor %}".into(),
        "{% for i in range(99999) %}{{ 'a' * 1000000 in 'b' * 1000000 }}{% endfor %}".into(),
        "{% set s = 'ab' * 10000000 %}{% for i in range(99999) %}{{ s | length }}{{ s | upper | length }}{% endfor %}".into(),
        "{% set s = 'ab' * 10000000 %}{% for i in range(99999) %}{% if s == s ~ '' %}{% endif %}{% endfor %}".into(),
        "{% set s = 'ab' * 4000000 %}{% for i in range(99999) %}{% if 'bb' in s %}{% endif %}{% endfor %}".into(),
        "{% set s = 'a b ' * 1000000 %}{% for i in range(99999) %}{{ s.split() | length }}{% endfor %}".into(),
        "{% set l = range(90000) | list %}{% for i in range(99999) %}{{ l | sort | length }}{{ l | unique | list | length }}{% endfor %}".into(),
        "{% set l = range(90000) | list %}{% for i in range(99999) %}{{ l == l[1:] }}{{ 5.5 in l }}{% endfor %}".into(),
        "{{ 'x' * 10**12 }}".into(),
        "{{ 9 ** 99999999 }}".into(),
        "{{ 'x' | center(10**9) }}{{ 'x'.ljust(10**9) }}".into(),
        "{{ '%1000000000d' % 1 }}".into(),
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}".into(),
        "{% macro f(s) %}{{ f(s ~ s) }}{% endmacro %}{{ f('aaaa' * 1000) }}".into(),
        "{% for x in [1] recursive %}{{ loop([1, 1]) }}{% endfor %}".into(),
        "{% include 'chat template' %}".into(),
        "{% include '/etc/passwd' %}".into(),
        "{% import '/etc/passwd' as x %}".into(),
        "{% extends 'chat template' %}".into(),
        "{{ raise_exception('one\nline') }}".into(),
        "{{ messages.append(1) }}".into(),
        "{{ messages[0].a.b.c }}".into(),
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}{{ ns | upper }}".into(),
        "{% set ns = namespace() %}{% set ns.a = [{'b': ns}] %}{{ {ns: 1} }}{{ ns == ns.a }}".into(),
        "{{ [1] | batch(10**9, 'x') | list }}".into(),
        "{{ [1] | slice(10**9) | list }}".into(),
        "{{ ('{0}' * 100000).format('a' * 1000000) }}".into(),
        "{{ ('%(a)s' * 100000) % {'a': 'a' * 1000000} }}".into(),
        "{% set s = 'a' * 10000000 %}{{ ([s] * 600000) | upper }}".into(),
        "{% set s = 'a' * 10000000 %}{{ range(99999) | map(attribute='x', default=s) | list | upper }}".into(),
        nest("[ns.l, ns.l]", "{{ ns.l | upper }}"),
        nest("(ns.l, ns.l)", "{{ raise_exception(ns.l) }}"),
        nest("{'a': ns.l, 'b': ns.l}", "{{ ns.l | pprint }}"),
        nest("ns.l | zip(ns.l) | list", "{{ '%s' % (ns.l,) }}"),
        nest("dict(a=ns.l, b=ns.l)", "{{ [ns.l] | unique | list }}{{ messages[0][ns.l] }}"),
        "{{ messages[0]['content'] / 0 }}".into(),
        grow("{% set ns.s = ns.s ~ ns.s %}"),
        grow("{% set ns.s = ns.s | replace('a', 'aaaa') %}"),
        grow("{% set ns.s = [ns.s, ns.s] | join %}"),
        grow("{% set ns.l = ns.l + ns.l %}"),
        grow("{% set ns.l = [ns.l, ns.l] %}{% set ns.s = ns.l | string %}"),
        grow("{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}"),
        format!("{{% set ns = namespace(l=[]) %}}{{% for i in range(99999) %}}{{% set ns.l = {}ns.l{} %}}{{% endfor %}}{{{{ ns.l }}}}", "[".repeat(40), "]".repeat(40)),
        "{% for i in range(99999) %}{% for j in range(30) %}{{ messages }}{% endfor %}{% endfor %}".into(),
    ];
    let failures: Vec<String> = sources.iter().filter_map(|source| misbehaves(source)).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What is wrong with how a server takes a template that fails.
fn misbehaves(source: &str) -> Option<String> {
    let checkpoint = with_template(source);
    let model = checkpoint.name();
    let server = Server::of(checkpoint.path(), &[]);
    let before = server.resident_mib();
    let begin = Instant::now();
    let reply = chat(&server, &model, json!({}));
    let took = begin.elapsed();
    let grown = server.resident_mib().zip(before).map_or(0, |(now, before)| now.saturating_sub(before));
    if verbose() {
        println!("{took:>8.1?} {grown} MiB {source:.100} {}", reply.body);
    }
    let message = reply.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    let plain = completion(&server, &model);
    let good = reply.status == 400
        && message.starts_with("chat template: ")
        && !message.contains('\n')
        && took < BOUND
        && grown < 1024
        && plain.status == 200;
    if good {
        server.stop();
        return None;
    }
    Some(format!("{source:.200}: {reply:?} in {took:?}, {grown} MiB more, then {plain:?}; {}", server.stderr()))
}

fn completion(server: &Server, model: &str) -> Reply {
    let body = json!({"model": model, "prompt": "Hello", "max_tokens": 4, "temperature": 0});
    post(&server.address, "/v1/completions", body.to_string().as_bytes())
}

#[test]
fn an_endless_template_does_not_stop_the_others() {
    let checkpoint = with_template(
        "{% if slow %}{% set s = 'ab' * 1000000 %}{% for i in range(99999) %}{% for j in range(99999) %}{{ s | length }}{% endfor %}{% endfor %}{% endif %}hello",
    );
    let model = checkpoint.name();
    let server = Server::of(checkpoint.path(), &[]);
    let expected = completion(&server, &model).text();
    let quick = chat(&server, &model, json!({"temperature": 0})).text();
    std::thread::scope(|scope| {
        let slow: Vec<_> = (0..3)
            .map(|_| scope.spawn(|| chat(&server, &model, json!({"chat_template_kwargs": {"slow": true}}))))
            .collect();
        for _ in 0..5 {
            let begin = Instant::now();
            assert_eq!(completion(&server, &model).text(), expected);
            assert_eq!(crate::http::get(&server.address, "/health").status, 200);
            assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
        }
        for reply in slow {
            let reply = reply.join().expect("a client");
            assert_eq!(reply.status, 400, "{reply:?}");
            assert!(reply.body.contains("chat template: "), "{reply:?}");
        }
    });
    assert_eq!(chat(&server, &model, json!({"temperature": 0})).text(), quick);
    server.stop();
}

#[test]
fn requests_cannot_change_what_a_template_may_do() {
    let checkpoint = with_template(
        "{% set ns = namespace(s='x') %}{{ ns.s ~ messages[0].content ~ bos_token ~ ('y' * 2) }}{{ range(3) | join }}",
    );
    let model = checkpoint.name();
    let server = Server::of(checkpoint.path(), &[]);
    let expected = chat(&server, &model, json!({"temperature": 0})).text();
    for kwargs in [
        json!({"__cat": "x"}),
        json!({"__mul": 5, "__add": 5, "__own": null, "__raw": []}),
        json!({"namespace": 5}),
        json!({"range": [1, 2]}),
        json!({"bos_token": {"a": "b"}}),
        json!({"bos_token": "x".repeat(1 << 20)}),
        json!({"strftime_now": 1, "raise_exception": 2}),
        json!({"messages": []}),
        json!({"": 1, "a b": 2, "\u{0}": 3}),
        json!(5),
        json!([]),
    ] {
        let reply = chat(&server, &model, json!({"chat_template_kwargs": kwargs}));
        assert!(matches!(reply.status, 200 | 400), "{kwargs}: {reply:?}");
    }
    assert_eq!(chat(&server, &model, json!({"temperature": 0})).text(), expected);
    // What a user writes is text, not a template.
    let reply =
        chat(&server, &model, json!({"messages": [{"role": "user", "content": "{{ raise_exception('x') }}{% for"}]}));
    assert_eq!(reply.status, 200, "{reply:?}");
    server.stop();
}
