use bytes::Bytes;

use super::*;
use crate::base::event::{Event, Origin, Place};

fn view(data: &str) -> Value {
    let message = format!(r#"{{"id":"1","data":{data}}}"#);
    let start = r#"{"id":"1","data":"#.len();
    View::of(Arc::new(Record::new(
        1,
        Event {
            id: "1".into(),
            distinct_key: None,
            place: Place::of("channel.tips", "", "main"),
            ts: "2024-02-15T14:52:42Z".into(),
            received: 0,
            origin: Origin::Live,
            data: start..start + data.len(),
            message: Bytes::from(message),
            may_have_personal_fields: true,
        },
    )))
}

#[test]
fn a_condition_looks_into_the_data() {
    let view = view(r#"{"donation":{"amount":5.5,"currency":"EUR"}}"#);
    for (text, expected) in [
        ("data.donation.amount >= 5", true),
        ("data.donation.amount >= 6", false),
        ("topic == 'channel.tips' and data.donation.currency in ['EUR', 'USD']", true),
        ("data.nothing", false),
    ] {
        assert_eq!(Condition::compile(text).unwrap().holds(&view).unwrap(), expected, "{text}");
    }
}

#[test]
fn undefined_values_behave_the_same_everywhere() {
    let view = view(r#"{"donation":{"amount":5,"none":null}}"#);
    for text in [
        "data.nothing.amount >= 5", "data.nothing < 5", "data.nothing == 5", "data.nothing != 5",
        "5 in data.nothing", "data.nothing in [5]", "1 < data.nothing < 5",
        "not data.nothing.at.all < 5",
    ] {
        assert!(Condition::compile(text).unwrap().holds(&view).is_err(), "{text}");
    }
    for (text, expected) in [
        ("data.nothing.at.all", false),
        ("data.nothing is defined and data.nothing > 5", false),
        ("not data.nothing", true),
        ("data.donation.none == none", true),
        ("1 < data.donation.amount <= 5 < 6", true),
        ("1 < data.donation.amount < 5", false),
        ("data.donation.amount not in [1, 2]", true),
    ] {
        assert_eq!(Condition::compile(text).unwrap().holds(&view).unwrap(), expected, "{text}");
    }
    for (text, expected) in [
        ("{{ data.nothing.at.all }}.", "."),
        ("{% if data.nothing > 5 %}a{% else %}b{% endif %}", "b"),
        ("{% if data.nothing != 5 %}a{% endif %}", ""),
        ("{% for x in data.nothing.list %}a{% endfor %}", ""),
        ("{{ data.nothing | default('d') }}", "d"),
    ] {
        assert_eq!(Template::compile(text).unwrap().render(&view).unwrap(), expected, "{text}");
    }
}

#[test]
fn the_language_is_jinja() {
    let view = view(r#"{"n":5.0,"list":[3,1,2],"name":"Ann","o":{"a":1,"b":null,"c":true}}"#);
    for (text, expected) in [
        (
            "{{ 1 + 2 * 3 }} {{ data.n * 100 }} {{ 'ab' * 2 }} {{ 'a' ~ 1 ~ 'b' }}",
            "7 500.0 abab a1b",
        ),
        (
            "{{ data.list + [4] }} {{ [1] * 2 }} {{ {'a': 1, 'b': [2]} }}",
            "[3, 1, 2, 4] [1, 1] {'a': 1, 'b': [2]}",
        ),
        ("{{ data.name[1:] }} {{ data.list[:2] }} {{ 'hello'[::-1] }}", "nn [3, 1] olleh"),
        (
            "{{ data.list | sort | join(', ') }} {{ data.list | map('string') | join }}",
            "1, 2, 3 312",
        ),
        (
            "{{ data.name | replace('n', '-') | upper }} {{ data.name | indent(2, true) }}",
            "A--   Ann",
        ),
        (
            "{{ data.list | sort(reverse=true) | join(d='-') }} {{ [data.o] | map(attribute='a') | join }}",
            "3-2-1 1",
        ),
        (
            "{{ data.name | indent(width=1, first=true) }} {{ '%(a)s' | format(a=data.name) }}",
            " Ann Ann",
        ),
        (
            "{{ data.o | tojson }} {{ data.list | tojson(indent=1) | length }}",
            r#"{"a":1,"b":null,"c":true} 14"#,
        ),
        ("{% for i in range(3) %}{{ i }}{{ ',' if not loop.last }}{% endfor %}", "0,1,2"),
        (
            "{% for k, v in data.o | items %}{{ k }}={{ v }};{% else %}none{% endfor %}",
            "a=1;b=;c=True;",
        ),
        ("{% for x in [] %}{% else %}none{% endfor %}", "none"),
        (
            "{% set ns = namespace(sum=0) %}{% for n in data.list %}{% set ns.sum = ns.sum + n %}{% endfor %}{{ ns.sum }}",
            "6",
        ),
        (
            "{% macro m(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ m(1) }}{{ m(1, y=3) }}",
            "<12><13>",
        ),
        ("{% set t %}a{{ data.name }}{% endset %}{{ t }}{{ t | length }}", "aAnn4"),
        ("{% filter upper %}a{{ data.name }}{% endfilter %}", "AANN"),
        ("{% if topic == 'channel.tips' and data.n > 4 %}yes{% endif %}", "yes"),
        (
            "{{ '%05.2f|%s' | format(data.n, data.name) }} {{ data.n | round(1) | int }}",
            "05.00|Ann 5",
        ),
        (
            "{{ '<a>' | e }} {{ '<a>' | safe }} {{ data.list | batch(2) }}",
            "&lt;a&gt; <a> [[3, 1], [2]]",
        ),
        ("{% block a %}b{% endblock %}{% with x = 1 %}{{ x }}{% endwith %}", "b1"),
        ("{% for a in [1] recursive %}{{ a }}{{ loop([]) }}{% endfor %}", "1"),
        (
            "{{ 2 ** 3 }} {{ 7 // 2 }} {{ 7 % 2 }} {{ -data.n }} {{ 1 in data.list }} {{ 'n' in data.name }}",
            "8 3 1 -5.0 True True",
        ),
        ("{% for i in range(5) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        (
            "{{ range(5, 0, -2) | list }} {{ range(0) | length }} {{ range(2, 5) | list }}",
            "[5, 3, 1] 0 [2, 3, 4]",
        ),
    ] {
        let made = Template::compile(text).and_then(|t| t.render(&view).map_err(|e| e.to_string()));
        assert_eq!(made.as_deref(), Ok(expected), "{text}");
    }
    for text in ["{{ x | nothing }}", "{% include 'a' %}", "{% extends 'a' %}", "{{ debug() }}"] {
        assert!(Template::compile(text).is_err(), "{text}");
    }
}

#[test]
fn an_error_names_the_line_of_the_template() {
    let template = Template::compile("a\n{{ data.list | batch(0) }}").unwrap();
    let error = template.render(&view("{}")).unwrap_err();
    assert_eq!(error.line(), Some(2), "{error}");
}

#[test]
fn a_value_can_be_a_string_of_json_and_nothing_else() {
    let evil = r#"", "allowed_mentions": {"parse": ["everyone"]}, "x": ""#;
    let backwards: String = evil.chars().rev().collect();
    let names = [
        evil, &backwards, r#"1","x":"2"#, r#"1,"x":2"#, "a\nb", "\\", "\"", "\u{2028}\u{0}\u{1b}",
        "\u{fdd0}\u{fdd2}{", "{{ raw }}", "\u{1f600}é",
    ];
    let templates = [
        r#"{"content": "{{ data.name }}"}"#,
        r#"{"content": "Hi {{ data.name | upper }}!"}"#,
        r#"{"content": {{ data.name }}}"#,
        r#"{"content": {{ data.name | tojson }}}"#,
        r#"{"content": "{{ (data.name | tojson)[1:-1] }}"}"#,
        r#"{% set who %}{{ data.name }}{% endset %}{"content": "{{ who }}"}"#,
        r#"{% macro m(x) %}"content": "{{ x }}"{% endmacro %}{ {{ m(data.name) }} }"#,
        r#"{"content": "{{ [data.name, data.name] | join(", ") }}"}"#,
        r#"{"content": "{{ data.name ~ "!" }}"}"#,
        r#"{"content": "{{ data.name | replace("a", '"') }}"}"#,
        r#"{"content": "{% for c in data.name %}{{ c }}{% endfor %}"}"#,
        r#"{"content": "{{ data.name | safe }}"}"#,
        r#"{"content": {{ {"a": data.name} | tojson }}}"#,
        r#"{ "content": "{{ "%s!" | format(data.name) }}" }"#,
        r#"{"content": "{{ data.nothing }}", "content": "{{ data.list | first }}{{ raw }}"}"#,
        r#"{% autoescape false %}{"content": "{{ data.name }}"}{% endautoescape %}"#,
        r#"{% macro m() %}{{ caller(1) }}{% endmacro %}{"content": "{% call(x) m() %}{{ data.name }}{% endcall %}"}"#,
        r#"{% set who %}{{ data.name }}{% endset %}{"content": {{ who | reverse }}}"#,
        r#"{% set who %}{{ data.name }}{% endset %}{"content": {{ who[::-1] }}}"#,
        r#"{% set who %}{{ data.name }}{% endset %}{"content": {{ (who | split)[1] }}}"#,
        r#"{% set who %}{{ data.name }}{% endset %}{"content": {{ who | lines | last }}}"#,
        r#"{% set who %}{{ data.name }}{% endset %}{"content": {{ who | trim(data.name) }}}"#,
        r#"{% set who %}{{ data.name }}{% endset %}{"content": "{{ who ~ data.name }}"}"#,
        r#"{% set who %}{{ data.name }}{% endset %}{"content": {{ "%.9s" | format(who) }}}"#,
        r#"{"content": {{ "%.3s" | format(data.name) }}}"#,
        r#"{"content": {{ data.name | tojson | replace("\\", "") }}}"#,
        r#"{"content": {{ data.name | tojson | trim('"') }}}"#,
        r#"{"content": {{ data.n | tojson | replace("5", data.name) }}}"#,
    ];
    for text in templates {
        for name in names {
            let view = view(&serde_json::json!({"name": name, "list": [name], "n": 5}).to_string());
            let made = Template::compile(text).unwrap().payload(&view).unwrap();
            assert!(made.json, "{text}");
            let json: serde_json::Value = serde_json::from_str(&made.text).unwrap();
            let members: Vec<_> = json.as_object().unwrap().keys().collect();
            assert_eq!(members, ["content"], "{text}");
        }
    }
}

#[test]
fn a_value_is_json_where_it_stands() {
    let made = |text: &str, data: &str| Template::compile(text).unwrap().payload(&view(data));
    let json = |text: &str, data: &str| made(text, data).unwrap().text;
    let data = r#"{"name":"a\"b\\","n":5.0,"list":["x","y"],"o":{"k":null}}"#;
    for (text, expected) in [
        (r#"{"a":"{{ data.name }}"}"#, r#"{"a":"a\"b\\"}"#),
        (
            r#"{"a":{{ data.name }},"b":{{ data.n }},"c":"{{ data.n }}"}"#,
            r#"{"a":"a\"b\\","b":5.0,"c":"5.0"}"#,
        ),
        (r#"{"a":{{ data.nothing }},"b":"{{ data.nothing }}"}"#, r#"{"a":null,"b":""}"#),
        (
            r#"{"a":[{% for x in data.list %}"{{ x }}"{{ "," if not loop.last }}{% endfor %}]}"#,
            r#"{"a":["x","y"]}"#,
        ),
        (r#"[{{ data.list | join(",") }}]"#, r#"["x","y"]"#),
        (r#"{"a":{{ data.o }},"b":"{{ data.o }}"}"#, r#"{"a":{"k":null},"b":"{\"k\":null}"}"#),
        (r#"{"a":{{ data.o | tojson }}}"#, r#"{"a":{"k":null}}"#),
        ("{{ data.o }}", r#"{"k":null}"#),
        ("{{ data | tojson }}", data),
        (r#"{"a":"{{ 'ON' if data.n > 4 else 'OFF' }}"}"#, r#"{"a":"ON"}"#),
    ] {
        assert_eq!(json(text, data), expected, "{text}");
    }
    for text in [
        r#"{"a":}"#, r#"{"a":"{{ data.name }}}"#, "{tip} {{ data.name }}",
        r#"{"a":"\{{ data.name }}"}"#,
    ] {
        assert!(made(text, data).is_err(), "{text}");
    }
}

/// What comes before, and what a template writes of it. No text of the template's own here has a meaning in
/// JSON.
const WRITERS: [(&str, &[&str]); 6] = [
    (
        "",
        &[
            "{{ data.name }}",
            "{{ '%.10s' | format(data.name) }}|",
            "{{ '%-20s' | format(data.name) }}|",
            "{{ '%20s' | format(data.name) }}|",
            "{{ '%s: %.3s, %5.1f' | format(data.name, data.name, data.n) }}",
            "{{ '%.1f of %s' | format(data.n, data.name) }}",
            "{{ data.name | replace('a', 'bb') | length }}",
            "{{ (data.name | replace('a', 'bb'))[:3] }}",
            "{{ data.list | join(', ') | length }}",
            "{{ (data.list | join(', '))[:5] }}",
            "{{ data.list | join(', ') | title }}",
            "{{ data.name | tojson | length }}",
            "{{ data.name | tojson | replace('\"', \"'\") }}",
            "{{ data.name | tojson | trim('\"') }}",
            "{{ data.n | tojson ~ data.name }}",
            "{{ data.n | tojson | replace('5', data.name) }}",
        ],
    ),
    (
        "{% set who %}{{ data.name }}{% endset %}",
        &[
            "{{ who }}",
            "{{ who ~ ': ' ~ data.name }}",
            "{{ ('a ' ~ who)[1:] }}",
            "{{ who + '!' }}{{ who * 2 }}",
            "{{ who[:3] }}{{ ('x' ~ who)[::-1] }}{{ who[0] }}{{ who[-1] }}",
            "{{ who | length }}{{ who | count }}{{ who | list | length }}",
            "{{ who | first }}{{ who | last }}{{ who | reverse }}",
            "{{ who | title }}{{ who | capitalize }}{{ who | upper }}{{ who | lower }}",
            "{{ who | trim }}{{ who | trim('ab ') }}{{ who | e }}",
            "{{ who | replace('a', 'b') }}{{ who | replace(who, 'x') }}{{ 'abc' | replace('b', who) }}",
            "{{ who | split | join('-') }}{{ who | lines | join('-') }}",
            "{{ who | indent(2) }}{{ who | string | length }}",
            "{% for c in who %}{{ c }}.{% endfor %}",
            "{% for c in data.list recursive %}{{ c }}{% if loop.depth < 2 %}({{ loop(who) }}){% endif %}{% endfor %}",
            "{{ [who] | select | list | length }}{{ [who] | reject | list | length }}",
            "{{ [who] | sum(start='') }}",
            "{{ 'yes' if who == data.name else 'no' }}{{ 'yes' if who != data.name else 'no' }}",
            "{{ 'yes' if who < 'b' else 'no' }}{{ 'yes' if 'A' < who < 'b' else 'no' }}",
            "{{ 'yes' if [who] == [data.name] else 'no' }}",
            "{{ 'yes' if data.name in who else 'no' }}{{ 'yes' if who in data.name else 'no' }}",
            "{{ 'yes' if who in [data.name] else 'no' }}{{ 'yes' if data.name in [who] else 'no' }}",
            "{{ 'yes' if who is eq(data.name) else 'no' }}{{ 'yes' if who is upper else 'no' }}",
            "{{ 'yes' if who is startingwith(data.name) else 'no' }}",
            "{{ 'yes' if who else 'no' }}{{ 'yes' if not who else 'no' }}",
            "{{ who or 'nobody' }}{{ who and 'somebody' }}{{ who | default('nobody', true) }}",
            "{{ who | tojson }}{{ {'a': who, 'b': [who]} | tojson }}",
            "{{ {data.name: 'found'}[who] }}{{ {who: 'found'}[data.name] }}",
            "{{ [who, 'B'] | sort | join(',') }}{{ [who] | min }}",
            "{{ [who, data.name] | unique | list | length }}",
            "{{ [who, 'x'] | join(', ') }}{{ [who, 'x'] | join(who) }}",
            "{{ [who, 'x'] | map('title') | join }}",
            "{{ 'n: %s' | format(who) }}{{ '%.2s' | format(who) }}{{ '%7s' | format(who) }}",
        ],
    ),
    (
        "{% set n %}{{ data.n }}{% endset %}{% set nothing %}{{ data.nothing }}{% endset %}",
        &[
            "{{ n }}{{ n ~ data.name }}{{ n | length }}{{ n | float + 1 }}",
            "{{ 'yes' if n > 5 else 'no' }}{{ 'yes' if n == '5.5' else 'no' }}",
            "{{ nothing | length }}{{ nothing or 'x' }}{{ nothing | upper }}{{ nothing ~ n }}",
        ],
    ),
    (
        "{% macro m(x) %}<{{ x }}>{% endmacro %}",
        &[
            "{{ m(data.name) ~ ': ' ~ data.name }}",
            "{{ m(data.name)[:4] }}{{ m(data.name) | length }}{{ m(data.name) | reverse }}",
            "{{ m(data.name) | trim('<>') }}{{ m(data.name) | upper }}",
            "{{ m(m(data.name)) | length }}{{ m(m(data.name)) | title }}",
            "{{ m(data.n) ~ data.name }}{{ m(data.n) | replace('5', data.name) }}",
            "{% filter title %}a {{ data.name }}{% endfilter %}",
            "{% filter trim %} {{ data.name }} {% endfilter %}",
        ],
    ),
    (
        "{% macro c() %}[{{ caller() | capitalize }}{{ caller()[:2] }}]{% endmacro %}",
        &["{% call c() %}{{ data.name }}{% endcall %}"],
    ),
    (
        "{% set ns = namespace(all='') %}",
        &[
            "{% for x in data.list %}{% set ns.all = ns.all ~ x ~ ';' %}{% endfor %}{{ ns.all }}",
            "{% autoescape false %}{% set x %}{{ data.name }}{% endset %}{{ x }}{{ x | length }}{% endautoescape %}",
        ],
    ),
];

#[test]
fn a_string_of_json_says_what_the_text_says() {
    let names = [
        "Bob", "a", "", "Annabelle Lee", " spaced  out ", "O'Neil \"the\" \\ x", "a/b.c, d: e;",
        "{}[]", "50%s %", "line\nbreak", "Zo\u{eb} \u{1f600} \u{df}", "\u{fdd0}x\u{fdd2}\u{e0fe}",
    ];
    for (before, bodies) in WRITERS {
        for body in bodies {
            let text = Template::compile(&format!("{before}{body}")).unwrap();
            let json = Template::compile(&format!(r#"{before}{{"a":"{body}"}}"#)).unwrap();
            for name in names {
                let data = serde_json::json!({"name": name, "list": [name, "x"], "n": 5.5});
                let view = view(&data.to_string());
                let text = text.render(&view).unwrap();
                let made = json.payload(&view).unwrap();
                let string: serde_json::Value = serde_json::from_str(&made.text).unwrap();
                assert_eq!(string, serde_json::json!({"a": text}), "{body} of {name:?}");
            }
        }
    }
}

#[test]
fn what_the_template_wrote_stays_its_own_until_it_is_changed() {
    let view = view(r#"{"name":"B\"o\"b","n":5.0,"list":["x","y"]}"#);
    let item = r#"{% macro m(x) %} {"name": "{{ x }}", "n": {{ data.n }}} {% endmacro %}"#;
    let expected = serde_json::json!([{"name": "B\"o\"b", "n": 5.0}]);
    for text in [
        "[{{ m(data.name) }}]",
        "[{{ m(data.name) | trim }}]",
        "[{{ m(data.name) | indent(2) }}]",
        "[{{ m(data.name) | replace(' ', '') }}]",
        "[{{ [m(data.name)] | join(',') }}]",
        "[{{ [m(data.name)] | reverse | list | first }}]",
        "[{{ nothing | default(m(data.name)) }}]",
        "[{{ m(data.name) ~ '' }}]",
        "[{{ '%s' | format(m(data.name)) }}]",
        r#"[{{ '{"name": "%s", "n": %.1f}' | format(data.name, data.n) }}]"#,
        "{% set ns = namespace(x='') %}{% set ns.x = m(data.name) %}[{{ ns.x }}]",
    ] {
        let text = format!("{item}{}", text.replace("nothing", "data.nothing"));
        let made = Template::compile(&text).unwrap().payload(&view).unwrap();
        assert!(made.json, "{text}");
        let json: serde_json::Value = serde_json::from_str(&made.text).unwrap();
        assert_eq!(json, expected, "{text}");
    }
}

#[test]
fn a_text_is_text_whatever_the_event_begins_with() {
    for (text, data, expected) in [
        ("{{ data }}", r#""{\"a\":1}""#, "{\"a\":1}"),
        ("{{ data.a }}: {{ data.b }}", r#"{"a":"[","b":"\""}"#, "[: \""),
        ("[tip] {{ data.a }}", r#"{"a":"\""}"#, "[tip] \""),
        ("[{{ channel }}] {{ data.a }}", r#"{"a":"x"}"#, "[main] x"),
        ("ON", "{}", "ON"),
    ] {
        let made = Template::compile(text).unwrap().payload(&view(data)).unwrap();
        assert_eq!((made.json, &*made.text), (false, expected), "{text}");
    }
}

fn mqtt(text: &str) -> Cow<'_, str> {
    let forbidden = |c: char| matches!(c, '+' | '#' | '%') || c.is_control();
    let words = text.split('/').map(|word| match word {
        "" => "_".to_owned(),
        word => word
            .chars()
            .map(|c| if forbidden(c) { format!("%{:02X}", u32::from(c)) } else { c.into() })
            .collect(),
    });
    words.collect::<Vec<_>>().join("/").into()
}

#[test]
fn a_value_is_one_word_of_an_address() {
    let address = |text: &str, data: &str| {
        Template::compile(text).unwrap().address(&view(data), '/', mqtt).unwrap()
    };
    let evil = r##"{"name":"command/session/reset","list":["a/b","+","#"],"dollar":"$SYS/x","empty":"","n":1.5}"##;
    for (text, expected) in [
        ("astro/{{ channel }}/{{ topic | replace('.', '/') }}", "astro/main/channel/tips"),
        ("astro/{{ channel }}/{{ data.name }}", "astro/main/command%2Fsession%2Freset"),
        ("astro/{{ data.name | upper }}", "astro/COMMAND%2FSESSION%2FRESET"),
        ("astro/{{ data.list | join('/') }}", "astro/a%2Fb/%2B/%23"),
        ("{% for x in data.list %}{{ x }}{{ '/' if not loop.last }}{% endfor %}", "a%2Fb/%2B/%23"),
        ("{% set x = data.name %}a/{{ x }}", "a/command%2Fsession%2Freset"),
        ("{% set x %}b/{{ data.name }}{% endset %}a/{{ x }}", "a/b/command%2Fsession%2Freset"),
        (
            "{% macro m(x) %}{{ x }}/c{% endmacro %}{{ m(data.name) }}",
            "command%2Fsession%2Freset/c",
        ),
        ("a/{{ data.name | safe }}", "a/command%2Fsession%2Freset"),
        ("a/{{ data.name ~ '/b' }}", "a/command%2Fsession%2Freset%2Fb"),
        (
            "a/{{ data.name | replace('x', '/') }}/{{ data['name'][0:8] }}",
            "a/command%2Fsession%2Freset/command%2F",
        ),
        ("{{ data.dollar }}/x", "%24SYS%2Fx/x"),
        ("a/{{ data.empty }}/{{ data.nothing }}/b{{ data.empty }}", "a/_/_/b"),
        ("a/{{ data.n }}/{{ data.list }}", "a/1.5/['a%2Fb', '%2B', '%23']"),
        ("a/{{ data.name | levels }}", "a/command/session/reset"),
        (
            "a/{{ data.list | join('/') | levels }}/{{ data.dollar | levels }}",
            "a/a%2Fb/%2B/%23/%24SYS/x",
        ),
        ("a/{{ '//' | levels }}/{{ data.empty | levels }}", "a/_/_/_/_"),
        ("{{ room }}{{ id }}{{ origin }}", "1live"),
        ("{{ '%.9s' | format(data.name) }}/tips", "command%2Fs/tips"),
        ("a/{{ '%s/%s' | format(channel, data.name) }}", "a/main/command%2Fsession%2Freset"),
        ("{% set x %}{{ data.name }}{% endset %}{{ x | title }}/x", "Command%2Fsession%2Freset/x"),
        ("{% set x %}{{ data.name }}{% endset %}{{ x[:8] }}/{{ x | length }}", "command%2F/21"),
        (
            "{% set x %} b/{{ data.name }} {% endset %}{{ x | trim | upper }}",
            "B/COMMAND%2FSESSION%2FRESET",
        ),
        ("{% set x %}b.{{ data.n }}{% endset %}{{ x | replace('.', '/') }}", "b/1%2F5"),
        (
            "{% set x %}b/{{ data.name }}{% endset %}{{ x ~ data.n }}",
            "b%2Fcommand%2Fsession%2Freset1.5",
        ),
    ] {
        assert_eq!(address(text, evil), expected, "{text}");
    }
}

#[test]
fn an_endless_loop_ends() {
    let template = Template::compile(
        "{% for a in range(1000) %}{% for b in range(1000) %}{{ a }}{% endfor %}{% endfor %}",
    );
    assert!(template.unwrap().render(&view("{}")).is_err());
}

#[test]
fn a_panic_of_the_engine_fails_that_event_only() {
    let view = view(r#"{"s":"abc","step":-9223372036854775808}"#);
    let template = Template::compile("{{ data.s[::data.step] }}").unwrap();
    // Whatever the build checks, it comes back.
    drop(template.render(&view));
    drop(Condition::compile("data.s[::data.step]").unwrap().holds(&view));
    drop(Template::compile("{{ 'abc'[::-9223372036854775808] }}"));
    assert_eq!(Template::compile("{{ data.s }}").unwrap().render(&view).unwrap(), "abc");
}

#[test]
fn a_long_chain_overflows_no_stack() {
    for (begin, part, end) in [
        ("{{ data", ".a", " }}"),
        ("{{ 1", "+1", " }}"),
        ("{{ 1", "~1", " }}"),
        ("{{ 1", "|int", " }}"),
        ("{{ 1", " or 1", " }}"),
        ("{{ 2", "**1", " }}"),
        ("{{ ", "-", "1 }}"),
        ("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
    ] {
        for length in [1000, code::LONGEST, 1_000_000] {
            let count = (length - begin.len() - end.len()) / part.len();
            drop(Template::compile(&format!("{begin}{}{end}", part.repeat(count))));
        }
    }
}

#[test]
fn an_amount_that_is_text_is_compared_as_the_number() {
    for (amount, holds) in [
        ("7", Some(true)),
        ("\"7\"", Some(true)),
        ("\"7.50\"", Some(true)),
        ("3", Some(false)),
        ("\"3\"", Some(false)),
        ("\"-1e999\"", Some(false)),
        ("\"x\"", None),
        ("[9]", None),
        ("{}", None),
        ("true", None),
        ("null", None),
    ] {
        let view = view(&format!(r#"{{"amount":{amount}}}"#));
        let outcome = Condition::compile("data.amount >= 5").unwrap().holds(&view);
        assert_eq!(outcome.ok(), holds, "{amount}");
    }
}

#[test]
fn a_template_can_fail_and_never_more() {
    let text = "x".repeat(100_000);
    let lines = "\\n".repeat(10_000);
    let huge = 1_u64 << 62;
    let view = view(&format!(
        r#"{{"n":{huge},"text":"{text}","lines":"{lines}","list":[1,2,3],"format":"%1000000000d"}}"#
    ));
    let began = tokio::time::Instant::now();
    for text in [
        "{{ data.text | indent(data.n) }}",
        "{{ data.lines | indent(width=9999) }}",
        "{{ data.lines | indent(9999, blank=true) }}",
        "{{ data.list | batch(data.n, 'x') }}",
        "{{ data.list | slice(data.n, 'x') }}",
        "{{ data.text | replace('x', data.text) }}",
        "{{ data.text | replace('', data.text) }}",
        "{{ 'x' * data.n }}",
        "{{ 'x' * 99999999 }}",
        "{{ data.text * 100 }}",
        "{{ data.list * data.n }}",
        "{{ ([1] * 99999999) | list }}",
        "{{ (range(10000) | list) * 1000 }}",
        "{{ range(data.n) }}",
        "{{ range(0, data.n, 1) | list }}",
        "{{ data.format | format(1) }}",
        "{{ '%*d' | format(data.n, 1) }}",
        "{{ '%99999d' | format(1) }}",
        "{{ ('%9999d' * 1000) | format(1) }}",
        "{{ data.list | tojson(indent=data.n) }}",
        "{{ data.list | tojson(data.n) }}",
        "{{ data.n | round(data.n) }}",
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% set ns = namespace(x='xx') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = {'a': ns.x, 'b': ns.x} %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(9000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
        "{% set ns = namespace() %}{% set ns.x = [{'a': ns}] %}{{ ns }}",
        "{% for i in range(9000) %}{{ data.text }}{% endfor %}",
        "{% set x %}{% for i in range(9000) %}{{ data.text }}{% endfor %}{% endset %}",
        "{% macro m(x) %}{{ m(x ~ x) }}{% endmacro %}{{ m('xx') }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for x in [1] recursive %}{{ loop([x]) }}{% endfor %}",
        "{{ ([data.text] * 9999) | join }}",
        "{{ ([data.text] * 9999) | join(data.text) }}",
        "{{ ([data.text] * 9999) | string }}",
        "{{ ([data.text] * 9999) | tojson }}",
        "{{ ([data.text] * 9999) ~ '' }}",
        "{{ [data.text] * 9999 }}",
        "{% for i in range(9000) %}{% set x = data.text | upper | lower | title %}{% endfor %}",
        "{% for i in range(9000) %}{% set x = data.text | list | sort | unique %}{% endfor %}",
        "{% for i in range(9000) %}{% set x = data.text[::-1] %}{% endfor %}",
        "{% for i in range(9000) %}{% set x = (data.text ~ i) in data.text %}{% endfor %}",
    ] {
        let template = Template::compile(text).unwrap();
        assert!(template.render(&view).is_err(), "{text}");
    }
    // Doubled by hand, and compared: each is twice as many to look through.
    let mut doubled = "{% set a = [1, 2] %}".to_owned();
    (0..40).for_each(|_| doubled.push_str("{% set a = [a, a] %}"));
    for end in ["", "{{ a == a }}", "{{ a }}"] {
        assert!(Template::compile(&format!("{doubled}{end}")).unwrap().render(&view).is_err());
    }
    let literal = format!(
        "{{% set x %}}{{% for i in range(9000) %}}{}{{% endfor %}}{{% endset %}}",
        "y".repeat(15_000)
    );
    assert!(Template::compile(&literal).unwrap().render(&view).is_err());
    assert!(Condition::compile("('x' * data.n) == ''").unwrap().holds(&view).is_err());
    assert!(Condition::compile("data.text | indent(data.n)").unwrap().holds(&view).is_err());
    // A debug build on a busy machine; it is bounded all the same.
    assert!(began.elapsed() < std::time::Duration::from_mins(2), "{:?}", began.elapsed());
}

#[test]
fn json_that_a_strict_reader_refuses_is_rendered() {
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let odd =
        format!(r#"{{"name":"great \ud83d","n":1e400,"deep":{deep},"a":1,"a":2,"amount":5}}"#);
    let seen = view(&odd);
    assert!(Condition::compile("data.amount == 5 and data.a == 2").unwrap().holds(&seen).unwrap());
    let made = |text: &str| Template::compile(text).unwrap().payload(&seen).unwrap().text;
    assert_eq!(
        made("{{ data.name }} {{ data.n }} {{ data.deep }}"),
        format!("great \u{fffd} 1e400 {deep}")
    );
    assert_eq!(made(r#"{"a":{{ data.deep }}}"#), format!(r#"{{"a":{deep}}}"#));
    assert_eq!(made("{{ raw }}"), format!(r#"{{"id":"1","data":{odd}}}"#), "as it came");
}

#[test]
fn data_of_any_depth_is_looked_into_and_no_crash() {
    for depth in [1000, 100_000] {
        let view = view(&format!("{}1{}", "[".repeat(depth), "]".repeat(depth)));
        assert!(Condition::compile("data").unwrap().holds(&view).unwrap());
        for text in
            ["{{ data }}", "{{ data | tojson }}", "{\"a\":{{ data }}}", "{{ data == [data] }}"]
        {
            assert!(Template::compile(text).unwrap().payload(&view).is_ok(), "{text}");
        }
    }
}

#[test]
fn an_expression_is_read_to_its_end() {
    for rest in ["&& data.x > 5", "& false", "; false", "# x", "$", "@ x", "? 1 : 2", "!", ") ("] {
        let text = format!("data.type == 'tip' {rest}");
        assert!(Condition::compile(&text).is_err(), "{text}");
        assert!(Template::compile(&format!("{{{{ {text} }}}}")).is_err(), "{text}");
    }
    assert!(Condition::compile("data.type == 'tip' and data.x > 5").is_ok());
    assert!(Condition::compile("data.type == 'tip'\n").is_ok());
}

#[test]
fn an_unknown_variable_is_an_error_of_compilation() {
    for text in ["dta.amount > 5", "data.amount >", "chanel"] {
        assert!(Condition::compile(text).is_err(), "{text}");
    }
    assert!(Template::compile("{{ dat.a }}").is_err());
    assert!(Template::compile("{% for x in range(2) %}{{ x }}{{ topic }}{% endfor %}").is_ok());
}

#[test]
fn a_template_says_what_it_uses() {
    let template =
        Template::compile("astro/{{ channel }}/{{ topic | replace('.', '/') }}").unwrap();
    assert!(template.uses_only(&["channel", "topic"]));
    assert!(!template.uses_only(&["topic"]));
    assert_eq!(template.render(&view("{}")).unwrap(), "astro/main/channel/tips");
}

proptest::proptest! {
    #[test]
    fn whatever_is_typed_the_json_has_the_same_form(name in "\\PC{0,12}|[\"\\\\{}\\[\\]:,\u{fdd0}-\u{fdd2}\n]{0,8}") {
        let text = r#"{"a": "x{{ data.name }}y", "b": {{ data.name }}, "c": {{ data.name | tojson }}}"#;
        let view = view(&serde_json::json!({"name": name}).to_string());
        let made = Template::compile(text).unwrap().payload(&view).unwrap();
        let json: serde_json::Value = serde_json::from_str(&made.text).unwrap();
        let name = marks::unmarked(&name);
        proptest::prop_assert_eq!(json, serde_json::json!({"a": format!("x{name}y"), "b": name, "c": name}));
    }

    #[test]
    fn whatever_is_typed_the_address_has_the_same_levels(name in "\\PC{0,12}|[/+#$%.\u{e0fe}\n]{0,8}") {
        let view = view(&serde_json::json!({"name": name}).to_string());
        let address = Template::compile("a/{{ data.name }}/{{ data.name | levels }}").unwrap();
        let address = address.address(&view, '/', mqtt).unwrap();
        proptest::prop_assert_eq!(address.split('/').count(), 2 + name.split('/').count());
        proptest::prop_assert!(address.split('/').all(|level| !level.is_empty() && !level.starts_with('$')), "{}", address);
        proptest::prop_assert!(!address.contains(['+', '#']));
    }
}
