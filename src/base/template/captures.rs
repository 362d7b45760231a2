//! What filters and tests do with a marked text: a captured block, what a macro wrote, joined values.
//!
//! Most get what it shows, as a value like any other. A few keep its marks, so that in what they make the
//! template's own text stays its own: separators of an address, brackets of JSON.

use minijinja::{
    Environment, Error, State, Value, tests,
    value::{Rest, ValueKind},
};

use super::{
    budget::{self, Mode},
    marks,
};

/// What a filter makes of a marked text that it changes part by part. `None`: it is no such filter, or no
/// such text.
pub(super) fn filtered(name: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let Some(text) = args.first().and_then(marks::marked) else { return Ok(None) };
    let made = match (name, args) {
        ("upper", [_]) => marks::changed(text, |part, _| part.to_uppercase()),
        ("lower", [_]) => marks::changed(text, |part, _| part.to_lowercase()),
        ("trim", [_]) => marks::trimmed(text, char::is_whitespace),
        ("trim", [_, cut]) if cut.as_str().is_some() => {
            let cut = marks::display(cut)?;
            marks::trimmed(text, |c| cut.contains(c))
        }
        ("replace", [_, from, to]) => {
            let (from, inside) = (marks::display(from)?, marks::display(to)?);
            let own = match to.as_str() {
                Some(own) if to.is_safe() => own.to_owned(),
                _ => marks::text_marked(&inside),
            };
            marks::changed(text, |part, ours| {
                part.replace(&from, if ours { &own } else { &inside })
            })
        }
        _ => return Ok(None),
    };
    Ok(Some(Value::from_safe_string(made)))
}

/// The arguments of a filter as it is to get them.
pub(super) fn arguments(name: &str, mut args: Vec<Value>) -> Result<Vec<Value>, Error> {
    if budget::mode() == Mode::Text {
        return Ok(args);
    }
    let text = |arg: &mut Value| *arg = marks::text_of(arg);
    match name {
        "indent" => {}
        "join" => args.iter_mut().take(1).for_each(text),
        "replace" => args.iter_mut().skip(1).take(1).for_each(text),
        "default" | "d" => {
            // What counts as nothing is asked of what it shows.
            let lax = args.get(2).is_some_and(Value::is_true);
            if lax && let Some(value) = args.first_mut().filter(|v| !marks::text_of(v).is_true()) {
                text(value);
            }
        }
        // Without a test they ask of each element whether it is anything.
        "select" | "reject" if args.len() == 1 => {
            let shown = |value: Value| {
                let shown = marks::text_of(&value);
                if shown.is_true() { value } else { shown }
            };
            if let Some(list) = args.first_mut()
                && let Ok(elements) = list.try_iter()
            {
                *list = elements.map(shown).collect();
            }
        }
        "format" if !cuts_values(&args) => {}
        "format" => {
            for arg in &mut args {
                *arg = marks::plain(arg)?;
            }
            // Then what it makes is a value too.
            if let Some(format) = args.first_mut()
                && let Some(text) = format.as_str().map(Value::from)
            {
                *format = text;
            }
        }
        // They compare what is in a list or map.
        "sort" | "unique" | "min" | "max" | "sum" | "groupby" | "dictsort" => {
            if let Some(list) = args.first_mut() {
                *list = marks::plain(list)?;
            }
            args.iter_mut().skip(1).for_each(text);
        }
        _ => args.iter_mut().for_each(text),
    }
    Ok(args)
}

/// Whether `format` would apply a width or precision to a text with its marks, or take a text of the
/// event's for a part of the format.
fn cuts_values(args: &[Value]) -> bool {
    let Some((format, values)) = args.split_first() else { return false };
    let own = |value: &Value| {
        let kind = value.kind();
        matches!(kind, ValueKind::Number | ValueKind::Bool)
            || value.is_safe() && marks::marked(value).is_none()
    };
    let sized = || {
        let format = format.as_str().unwrap_or_default().replace("%%", "");
        format.split('%').skip(1).any(|field| {
            let named = field.strip_prefix('(').and_then(|field| field.split_once(')'));
            let field = named.map_or(field, |(_, field)| field);
            let other = |c: char| c.is_ascii_alphabetic() && !matches!(c, 'h' | 'l' | 'L');
            field.split_once('s').is_some_and(|(size, _)| !size.is_empty() && !size.contains(other))
        })
    };
    marks::marked(format).is_some() || !values.iter().all(own) && sized()
}

/// The engine's tests that compare texts, called with what these show.
pub(super) fn add_tests(environment: &mut Environment<'static>) {
    let all: [(&[&'static str], Value); 11] = [
        (&["eq", "equalto", "=="], Value::from_function(tests::is_eq)),
        (&["ne", "!="], Value::from_function(tests::is_ne)),
        (&["lt", "lessthan", "<"], Value::from_function(tests::is_lt)),
        (&["le", "<="], Value::from_function(tests::is_le)),
        (&["gt", "greaterthan", ">"], Value::from_function(tests::is_gt)),
        (&["ge", ">="], Value::from_function(tests::is_ge)),
        (&["in"], Value::from_function(tests::is_in)),
        (&["startingwith"], Value::from_function(tests::is_startingwith)),
        (&["endingwith"], Value::from_function(tests::is_endingwith)),
        (&["lower"], Value::from_function(tests::is_lower)),
        (&["upper"], Value::from_function(tests::is_upper)),
    ];
    for (names, test) in all {
        for name in names {
            let test = test.clone();
            environment.add_test(*name, move |state: &mut State<'_, '_>, args: Rest<Value>| {
                let args = args.iter().map(marks::plain).collect::<Result<Vec<_>, Error>>()?;
                test.call(state, &args)
            });
        }
    }
}
