//! The language of templates and conditions: which filters and functions there are, and what the
//! operators do.
//!
//! It is Jinja, as the engine has it, with three differences:
//!
//! - Whatever can make much of little (a repeated text, an indentation, a filler, a list of one text many
//!   times) is measured before it is made, see [`budget`].
//! - What is undefined prints nothing, is false, and has no fields: a field of it is undefined too. Each
//!   comparison with it is false; a condition that made one does not match.
//! - `safe` marks nothing as safe, and `debug` is not there.
//!
//! Operators are functions here, under names that no template can write: [`super::code`] puts calls of
//! them where the compiler put instructions.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock, Mutex},
};

use minijinja::{
    Environment, Error, ErrorKind, State, UndefinedBehavior, Value, filters,
    value::{Enumerator, Kwargs, Object, Rest, ValueKind, ValueOrKwargs},
};

use super::{
    budget::{self, Mode},
    captures, marks,
};
use crate::base::sync::lock;

/// Steps that one rendering or evaluation may take: enough for a loop over the largest real list
/// (a session's 62 elements), little enough to end an endless one within milliseconds.
const FUEL: u64 = 200_000;

/// How deep calls of macros may be nested; the engine counts each as several. Each takes the stack.
const CALLS: usize = 64;

pub(super) static LANGUAGE: LazyLock<Environment<'static>> = LazyLock::new(language);

/// The engine as it is, for what is done once it is known how much that will be.
static PLAIN: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment
});

pub(super) static FILTERS: LazyLock<Vec<&'static str>> = LazyLock::new(|| {
    let mut names: Vec<_> = filters().into_iter().map(|(name, ..)| name).collect();
    names.extend(["safe", "escape", "e", "string", "pprint", "tojson", "levels"]);
    names.sort_unstable();
    names
});

fn language() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Chainable);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(CALLS);
    environment.set_formatter(marks::format);
    environment.set_debug(false);
    environment.remove_global("debug");
    environment.add_function("range", range);
    environment.add_function("namespace", Namespace::make);
    operators(&mut environment);
    for (name, filter, check) in filters() {
        environment.add_filter(
            name,
            move |state: &mut State<'_, '_>, args: Rest<ValueOrKwargs>| {
                let args = args.into_values();
                for arg in &args {
                    budget::charge(arg, 1)?;
                }
                check(&args)?;
                let made = match captures::filtered(name, &args)? {
                    Some(made) => made,
                    None => filter.call(state, &captures::arguments(name, args)?)?,
                };
                budget::charge(&made, 1)?;
                Ok::<_, Error>(made)
            },
        );
    }
    environment.add_filter("safe", |value: Value| value);
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
    environment.add_filter("string", string);
    environment.add_filter("pprint", |value: Value| marks::display(&value));
    environment.add_filter("tojson", tojson);
    environment.add_filter("levels", levels);
    captures::add_tests(&mut environment);
    environment
}

/// What is to be measured before a filter is called.
type Check = fn(&[Value]) -> Result<(), Error>;

/// The engine's filters that are called as they are once their arguments were looked at.
fn filters() -> Vec<(&'static str, Value, Check)> {
    let any: Check = |_| Ok(());
    macro_rules! table {
        ($($name:literal $filter:ident $check:expr),* $(,)?) => {
            vec![$(($name, Value::from_function(filters::$filter), $check as Check)),*]
        };
    }
    table![
        "lower" lower any, "upper" upper any, "title" title any, "capitalize" capitalize any,
        "replace" replace replace, "length" length any, "count" length any,
        "dictsort" dictsort many, "items" items many, "reverse" reverse many, "trim" trim any,
        "join" join join, "split" split many, "lines" lines many,
        "default" default any, "d" default any, "round" round counts, "abs" abs any,
        "int" int any, "float" float any, "attr" attr any, "first" first any, "last" last any,
        "min" min any, "max" max any, "sort" sort many, "list" list many, "bool" bool any,
        "batch" batch fill, "slice" slice fill, "sum" sum many, "indent" indent indent,
        "select" select many, "reject" reject many, "selectattr" selectattr many,
        "rejectattr" rejectattr many, "map" map many, "groupby" groupby many,
        "unique" unique many, "chain" chain any, "zip" zip many, "format" format format,
    ]
}

/// Each character or element becomes a value of its own.
fn many(args: &[Value]) -> Result<(), Error> {
    args.iter().try_for_each(|arg| budget::charge(arg, 16))
}

/// The arguments behind the value, also those with a name.
fn arguments(args: &[Value]) -> impl Iterator<Item = Value> {
    args.iter().skip(1).flat_map(|arg| match arg.kind() {
        ValueKind::Map => {
            let names = arg.try_iter().into_iter().flatten();
            names.filter_map(|name| arg.get_item(&name).ok()).collect()
        }
        _ => vec![arg.clone()],
    })
}

fn counts(args: &[Value]) -> Result<(), Error> {
    arguments(args).try_for_each(|arg| budget::count(&arg))
}

/// `batch` and `slice` fill up to their count.
fn fill(args: &[Value]) -> Result<(), Error> {
    args.get(1).map_or(Ok(()), budget::count)?;
    many(args)
}

fn length_of(value: Option<&Value>) -> usize {
    value.and_then(Value::as_str).map_or(0, str::len)
}

fn replace(args: &[Value]) -> Result<(), Error> {
    let [Some(text), Some(from)] = [0, 1].map(|at| args.get(at).and_then(Value::as_str)) else {
        return Ok(());
    };
    let found = if from.is_empty() { text.len() + 1 } else { text.matches(from).count() };
    // The marks of a value may come with each.
    let each = args.get(2).map_or(0, |to| length_of(Some(to)) + 6);
    budget::text(found.saturating_mul(each).saturating_add(text.len()))
}

fn indent(args: &[Value]) -> Result<(), Error> {
    let mut width = 4;
    for arg in arguments(args) {
        budget::count(&arg)?;
        width = width.max(arg.as_usize().unwrap_or(0));
    }
    let text = args.first().and_then(Value::as_str).unwrap_or_default();
    let lines = text.matches('\n').count() + 1;
    budget::text(lines.saturating_mul(width).saturating_add(text.len()))
}

fn join(args: &[Value]) -> Result<(), Error> {
    many(args.get(..1).unwrap_or_default())?;
    let [Some(list), joiner] = [0, 1].map(|at| args.get(at)) else { return Ok(()) };
    let named = || arguments(args).map(|arg| length_of(Some(&arg))).max().unwrap_or(0);
    let joiner = joiner.map_or(0, |joiner| length_of(Some(joiner)).max(named()));
    let mut length = 0_usize;
    if let Ok(parts) = list.try_iter() {
        for part in parts {
            length = length.saturating_add(
                joiner
                    + 6
                    + match part.as_str() {
                        Some(text) => text.len(),
                        None => budget::display(&part)?.len(),
                    },
            );
        }
    }
    budget::text(length)
}

/// Widths and precisions stand in the format, or are taken from the arguments (`*`).
fn format(args: &[Value]) -> Result<(), Error> {
    let format = args.first().and_then(Value::as_str).unwrap_or_default();
    let digits = |c: char| !c.is_ascii_digit();
    let widest = format.split(digits).filter(|number| number.len() > 4).count();
    if widest > 0 || format.contains('*') {
        return Err(budget::too_much(
            "a width or precision that is too large, or comes from the event",
        ));
    }
    let mut length = 0_usize;
    for arg in arguments(args) {
        length = length.max(budget::display(&arg)?.len());
    }
    let fields = format.matches('%').count();
    budget::text(fields.saturating_mul(length + 10_000).saturating_add(format.len()))
}

fn string(value: Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value);
    }
    marks::display(&value).map(Value::from)
}

/// For HTML.
fn escape(value: &Value) -> Result<String, Error> {
    let mut text = marks::display(value)?;
    budget::text(text.len().saturating_mul(6))?;
    // The ampersand first: it stands in what the others become.
    for (c, escaped) in
        [('&', "&amp;"), ('<', "&lt;"), ('>', "&gt;"), ('"', "&quot;"), ('\'', "&#x27;")]
    {
        text = text.replace(c, escaped);
    }
    Ok(text)
}

/// A value as JSON. In a template that makes JSON it stands as it is outside of a string, and is a part
/// of the string within one.
#[expect(clippy::needless_pass_by_value, reason = "the engine wants it so")]
fn tojson(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let named: Option<Value> = kwargs.get("indent")?;
    kwargs.assert_all_used()?;
    let indent = match indent.or(named) {
        None => None,
        Some(wide) if wide.kind() == ValueKind::Bool => wide.is_true().then_some(2),
        Some(wide) if wide.is_none() || wide.is_undefined() => None,
        Some(width) => {
            let width = width.as_usize().filter(|width| *width <= 16);
            Some(width.ok_or_else(|| budget::too_much("an indentation of more than 16"))?)
        }
    };
    budget::charge(value, 1)?;
    let json = if value.is_undefined() { "null".to_owned() } else { marks::json(value, indent)? };
    Ok(match budget::mode() {
        Mode::Json => Value::from_safe_string(marks::json_marked(&json)),
        Mode::Text | Mode::Address { .. } => Value::from(json),
    })
}

/// A text with separators as several levels of an address; elsewhere as it is.
fn levels(value: Value) -> Result<Value, Error> {
    match budget::mode() {
        Mode::Address { separator } if !value.is_safe() => {
            let text = marks::display(&value)?;
            budget::text(text.len().saturating_mul(7))?;
            Ok(Value::from_safe_string(marks::levels(&text, separator)))
        }
        _ => Ok(value),
    }
}

fn range(first: i64, second: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (from, to) = second.map_or((0, first), |to| (first, to));
    let step = step.unwrap_or(1);
    let size = match step {
        0 => return Err(budget::too_much("a range with a step of 0")),
        _ if (step > 0) == (to > from) => from.abs_diff(to).div_ceil(step.unsigned_abs()),
        _ => 0,
    };
    if size > u64::from(budget::COUNT) {
        return Err(budget::too_much(format_args!("a range of more than {}", budget::COUNT)));
    }
    let count = usize::try_from(size).unwrap_or(0);
    budget::spend(count * 32)?;
    let numbers = std::iter::successors(Some(from), |n| n.checked_add(step)).take(count);
    Ok(numbers.collect())
}

fn operators(environment: &mut Environment<'static>) {
    comparisons(environment);
    values(environment);
    for (name, text) in [("+", "a + b"), ("*", "a * b"), ("is in", "a in b")] {
        let expression = PLAIN.compile_expression(text);
        let plain = move |a: Value, b: Value| match &expression {
            Ok(expression) => expression.eval(minijinja::context! { a, b }),
            Err(_) => Err(Error::from(ErrorKind::InvalidOperation)),
        };
        let check: fn(&Value, &Value) -> Result<(), Error> = match name {
            "+" => plus,
            "*" => times,
            _ => contained,
        };
        environment.add_function(name, move |a: Value, b: Value| {
            check(&a, &b)?;
            if name == "is in" {
                plain(marks::plain(&a)?, marks::plain(&b)?)
            } else {
                plain(marks::text_of(&a), marks::text_of(&b))
            }
        });
    }
    environment.add_function("~", |a: Value, b: Value| -> Result<Value, Error> {
        if a.is_safe() && b.is_safe() {
            budget::text(length_of(Some(&a)) + length_of(Some(&b)))?;
            let text =
                format!("{}{}", a.as_str().unwrap_or_default(), b.as_str().unwrap_or_default());
            return Ok(Value::from_safe_string(text));
        }
        let (mut text, b) = (marks::display(&a)?, marks::display(&b)?);
        budget::text(text.len() + b.len())?;
        text.push_str(&b);
        Ok(Value::from(text))
    });
}

type Test = fn(&Value, &Value) -> bool;

fn comparisons(environment: &mut Environment<'static>) {
    let equal: [(&str, Test); 2] = [("==", |a, b| a == b), ("!=", |a, b| a != b)];
    let ordered: [(&str, Test); 4] = [
        ("<", |a, b| in_order(a, b, |a, b| a < b)),
        ("<=", |a, b| in_order(a, b, |a, b| a <= b)),
        (">", |a, b| in_order(a, b, |a, b| a > b)),
        (">=", |a, b| in_order(a, b, |a, b| a >= b)),
    ];
    for (name, test) in equal.into_iter().chain(ordered) {
        environment.add_function(name, move |a: Value, b: Value| compare(&a, &b, test));
        // The right side is kept for the comparison that follows.
        let chained = format!("{name} and");
        environment.add_function(chained, move |a: Value, b: Value| {
            Ok::<_, Error>(Value::from(vec![Value::from(compare(&a, &b, test)?), b]))
        });
    }
}

/// What makes or changes lists, maps, parts and namespaces.
fn values(environment: &mut Environment<'static>) {
    environment.add_function("[]", |parts: Rest<Value>| -> Result<Value, Error> {
        let list = Value::from(parts.0);
        budget::charge(&list, 1)?;
        Ok(list)
    });
    environment.add_function("{}", |parts: Rest<Value>| -> Result<Value, Error> {
        let pairs = parts.0.chunks_exact(2).filter_map(|pair| match pair {
            [name, value] => Some((marks::text_of(name), value.clone())),
            _ => None,
        });
        let map = Value::from_pairs(pairs);
        budget::charge(&map, 1)?;
        Ok(map)
    });
    let slice = PLAIN.compile_expression("v[a:b:c]");
    environment.add_function("[:]", move |v: Value, a: Value, b: Value, c: Value| {
        budget::charge(&v, 1)?;
        let string = marks::marked(&v).and_then(marks::marked_string);
        let v = match string {
            // The text of a JSON string without its quotes is that text, and escaped as one.
            Some(text) if (a.as_i64(), b.as_i64()) == (Some(1), Some(-1)) => {
                return Ok(Value::from(text));
            }
            _ => marks::text_of(&v),
        };
        match &slice {
            Ok(slice) => slice.eval(minijinja::context! { v, a, b, c }),
            Err(_) => Err(Error::from(ErrorKind::InvalidOperation)),
        }
    });
    environment.add_function("as shown", |value: Value| marks::text_of(&value));
    environment.add_function("time is left", budget::tick);
    environment.add_function("set in", |value: Value, space: Value, name: String| match space
        .downcast_object_ref::<Namespace>(
    ) {
        Some(space) => space.set(&name, value),
        None => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("can only assign to namespaces, not {}", space.kind()),
        )),
    });
}

fn compare(a: &Value, b: &Value, test: fn(&Value, &Value) -> bool) -> Result<bool, Error> {
    if a.is_undefined() || b.is_undefined() {
        budget::note_undefined();
        return Ok(false);
    }
    // Two texts or numbers are compared within no time.
    if a.try_iter().is_ok() {
        budget::charge(a, 1)?;
    }
    Ok(test(&marks::plain(a)?, &marks::plain(b)?))
}

/// Compares what has an order. A number that comes as text counts as the number, for amounts come as
/// both; two values of different kinds have no order, and the comparison counts as one with something
/// undefined.
fn in_order(a: &Value, b: &Value, test: fn(&Value, &Value) -> bool) -> bool {
    let number = |value: &Value| value.as_str()?.trim().parse::<f64>().ok().map(Value::from);
    match (a.kind(), b.kind()) {
        (a_kind, b_kind) if a_kind == b_kind => return test(a, b),
        (ValueKind::Number, ValueKind::String) => {
            if let Some(b) = number(b) {
                return test(a, &b);
            }
        }
        (ValueKind::String, ValueKind::Number) => {
            if let Some(a) = number(a) {
                return test(&a, b);
            }
        }
        _ => {}
    }
    budget::note_undefined();
    false
}

fn contained(a: &Value, b: &Value) -> Result<(), Error> {
    if a.is_undefined() || b.is_undefined() {
        budget::note_undefined();
    }
    budget::charge(b, 1)
}

fn plus(a: &Value, b: &Value) -> Result<(), Error> {
    match (a.as_str(), b.as_str()) {
        (Some(a), Some(b)) => budget::text(a.len() + b.len()),
        _ => [a, b].into_iter().try_for_each(|value| budget::charge(value, 1)),
    }
}

/// A text or a list, repeated.
fn times(a: &Value, b: &Value) -> Result<(), Error> {
    let (value, number) = if a.is_number() { (b, a) } else { (a, b) };
    if value.is_number() {
        return Ok(());
    }
    let number = number.as_usize().unwrap_or(0);
    if let Some(text) = value.as_str() {
        return budget::text(text.len().saturating_mul(number));
    }
    let length = value.len().unwrap_or(0).saturating_mul(number);
    if length > usize::try_from(budget::COUNT).unwrap_or(0) {
        return Err(budget::too_much("a list that is repeated too often"));
    }
    budget::charge(value, number)
}

/// What a loop can change. It holds texts, numbers, and lists and maps of a bounded size, and no
/// namespace: none holds itself.
#[derive(Debug, Default)]
struct Namespace(Mutex<BTreeMap<Arc<str>, Value>>);

impl Namespace {
    #[expect(clippy::needless_pass_by_value, reason = "the engine wants it so")]
    fn make(kwargs: Kwargs) -> Result<Value, Error> {
        let space = Self::default();
        for name in kwargs.args() {
            space.set(name, kwargs.get(name)?)?;
        }
        kwargs.assert_all_used()?;
        Ok(Value::from_object(space))
    }

    fn set(&self, name: &str, value: Value) -> Result<Value, Error> {
        if holds_namespace(&value, budget::DEPTH) {
            return Err(budget::too_much("a namespace in a namespace"));
        }
        budget::charge(&value, 1)?;
        let mut values = lock(&self.0);
        values.insert(name.into(), value);
        Ok(Value::UNDEFINED)
    }
}

fn holds_namespace(value: &Value, depth: usize) -> bool {
    if value.downcast_object_ref::<Namespace>().is_some() || depth == 0 {
        return true;
    }
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            value.try_iter().into_iter().flatten().any(|part| holds_namespace(&part, depth - 1))
        }
        ValueKind::Map => {
            value.try_iter().into_iter().flatten().any(|name| {
                value.get_item(&name).is_ok_and(|part| holds_namespace(&part, depth - 1))
            })
        }
        _ => false,
    }
}

impl Object for Namespace {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let values = lock(&self.0);
        values.get(key.as_str()?).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let values = lock(&self.0);
        Enumerator::Values(values.keys().map(|name| Value::from(&**name)).collect())
    }
}
