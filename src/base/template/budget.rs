//! What one rendering or evaluation may use: output, work and time.
//!
//! The engine counts steps (its fuel) and the depth of calls. That bounds neither memory nor time where
//! one step can make a text of any length; so every operator, filter and function that can make much of
//! little, or looks through much, is charged here before it does so, and what is written out is counted.
//!
//! A rendering is one call on one thread, so its budget is that thread's.

use std::{cell::RefCell, fmt, time::Duration};

use minijinja::{Error, ErrorKind, Value, value::ValueKind};
use rustix::time::ClockId;

use crate::base::clock;

/// Bytes that a rendering may write, captures and macros included. The largest message that is known has
/// somewhat more than 1 MiB.
pub(crate) const OUTPUT: usize = 8 * 1024 * 1024;

/// What the values that operators, filters and functions are given and make may weigh together: their
/// bytes, and [`NODE`] for each value in a list or map.
pub(crate) const WORK: usize = 64 * 1024 * 1024;

/// The largest text that one operator, filter or function may make.
pub(crate) const TEXT: usize = 4 * 1024 * 1024;

/// The largest integer that a filter takes as a width, a count or a precision, and the most elements of a
/// `range`.
pub const COUNT: u32 = 10_000;

/// How deep lists and maps may be that a template makes. The data of an event is read less deep.
pub(crate) const DEPTH: usize = 2 * crate::base::json::NESTING;

/// Processor time: what is within all other limits takes far less.
pub(crate) const TIME: Duration = Duration::from_millis(500);

/// What a value in a list or map weighs beside its text: it is what it takes in memory.
const NODE: usize = 32;

/// What is being rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Mode {
    /// Text in which nothing has a meaning.
    #[default]
    Text,
    /// JSON: values are marked, see [`super::marks`].
    Json,
    /// An address of words between separators: values are marked.
    Address {
        /// What stands between the words.
        separator: char,
    },
}

#[derive(Debug, Default)]
struct Budget {
    mode: Mode,
    output: usize,
    work: usize,
    until: Duration,
    /// Something undefined was compared.
    undefined: bool,
}

thread_local! {
    static BUDGET: RefCell<Budget> = RefCell::default();
}

/// Begins a rendering or evaluation on this thread.
pub(super) fn begin(mode: Mode) {
    let until = processor_time() + TIME;
    BUDGET.set(Budget { mode, output: OUTPUT, work: WORK, until, undefined: false });
}

/// What is being rendered on this thread.
pub(super) fn mode() -> Mode {
    BUDGET.with_borrow(|budget| budget.mode)
}

/// Notes that something undefined was compared.
pub(super) fn note_undefined() {
    BUDGET.with_borrow_mut(|budget| budget.undefined = true);
}

/// Whether something undefined was compared.
pub(super) fn met_undefined() -> bool {
    BUDGET.with_borrow(|budget| budget.undefined)
}

/// Processor time of this thread: a machine that is busy with something else does not use it up.
fn processor_time() -> Duration {
    clock::read(ClockId::ThreadCPUTime)
}

/// An error that says what is too much.
pub(super) fn too_much(what: impl fmt::Display) -> Error {
    Error::new(ErrorKind::InvalidOperation, what.to_string())
}

/// Fails where the time is over. Asked at every turn of a loop.
pub(super) fn tick() -> Result<(), Error> {
    let over = BUDGET.with_borrow(|budget| processor_time() > budget.until);
    if over { Err(too_much(format_args!("it takes more than {TIME:?}"))) } else { Ok(()) }
}

/// Takes `bytes` of the work.
pub(super) fn spend(bytes: usize) -> Result<(), Error> {
    BUDGET.with_borrow_mut(|budget| match budget.work.checked_sub(bytes) {
        Some(left) => {
            budget.work = left;
            Ok(())
        }
        None => Err(too_much(format_args!("it handles more than {WORK} bytes"))),
    })
}

/// Takes what a value weighs from the work, `times` times.
pub(super) fn charge(value: &Value, times: usize) -> Result<(), Error> {
    let mut left = BUDGET.with_borrow(|budget| budget.work / times.max(1));
    let before = left;
    weigh(value, &mut left, DEPTH)?;
    spend((before - left) * times)
}

fn weigh(value: &Value, left: &mut usize, depth: usize) -> Result<(), Error> {
    let too_heavy = || too_much(format_args!("it handles more than {WORK} bytes"));
    let bytes = NODE + value.as_str().map_or(0, str::len);
    *left = left.checked_sub(bytes).ok_or_else(too_heavy)?;
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Err(too_much(format_args!("a value is nested deeper than {DEPTH}")));
    };
    for part in value.try_iter()? {
        weigh(&part, left, depth)?;
        if kind == ValueKind::Map {
            weigh(&value.get_item(&part)?, left, depth)?;
        }
    }
    Ok(())
}

/// Fails where a text of that length is too large.
pub(super) fn text(length: usize) -> Result<(), Error> {
    if length > TEXT {
        return Err(too_much(format_args!("a text of more than {TEXT} bytes")));
    }
    spend(length)
}

/// A number as a width, a count or a precision. What is no number is none of these.
pub(super) fn count(value: &Value) -> Result<(), Error> {
    let within = |number: f64| number.abs() <= f64::from(COUNT);
    let fits = !value.is_number() || f64::try_from(value.clone()).is_ok_and(within);
    if fits { Ok(()) } else { Err(too_much(format_args!("a number beyond {COUNT}"))) }
}

/// A value as text, no longer than a text may be.
pub(super) fn display(value: &Value) -> Result<String, Error> {
    let mut bounded = Bounded { text: String::new(), left: TEXT };
    let written = match value.as_str() {
        Some(text) => fmt::Write::write_str(&mut bounded, text),
        None => fmt::Write::write_fmt(&mut bounded, format_args!("{value}")),
    };
    written.map_err(|_| too_much(format_args!("a text of more than {TEXT} bytes")))?;
    spend(bounded.text.len())?;
    Ok(bounded.text)
}

/// A value as JSON text, no longer than a text may be.
pub(super) fn json(value: &Value, indent: Option<usize>) -> Result<String, Error> {
    let mut bounded = Bounded { text: String::new(), left: TEXT };
    let written = match indent {
        None => serde::Serialize::serialize(value, &mut serde_json::Serializer::new(&mut bounded)),
        Some(width) => {
            let indent = " ".repeat(width);
            let formatter = serde_json::ser::PrettyFormatter::with_indent(indent.as_bytes());
            let mut serializer = serde_json::Serializer::with_formatter(&mut bounded, formatter);
            serde::Serialize::serialize(value, &mut serializer)
        }
    };
    written.map_err(|error| {
        if error.is_io() {
            too_much(format_args!("a text of more than {TEXT} bytes"))
        } else {
            Error::new(ErrorKind::InvalidOperation, error.to_string())
        }
    })?;
    spend(bounded.text.len())?;
    Ok(bounded.text)
}

/// A text that grows no larger than it may.
struct Bounded {
    text: String,
    left: usize,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        self.left = self.left.checked_sub(part.len()).ok_or(fmt::Error)?;
        self.text.push_str(part);
        Ok(())
    }
}

impl std::io::Write for Bounded {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        // Whole texts are written, never half a character.
        let text = std::str::from_utf8(part).map_err(std::io::Error::other)?;
        fmt::Write::write_str(self, text).map_err(std::io::Error::other)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Takes `bytes` of the output.
pub(super) fn write(bytes: usize) -> Result<(), Error> {
    BUDGET.with_borrow_mut(|budget| match budget.output.checked_sub(bytes) {
        Some(left) => {
            budget.output = left;
            Ok(())
        }
        None => Err(too_much(format_args!("the output is larger than {OUTPUT} bytes"))),
    })
}
