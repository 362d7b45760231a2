//! From a text to what the engine runs, with calls of our own in place of its operators.
//!
//! The engine has no hook for an operator, a literal or the turn of a loop. So the compiled code is walked
//! once: what would make or look through values becomes a call of a function of [`language`], literals
//! become values that are marked as the template's own, and each turn of a loop asks whether time is up.
//! The engine's version is pinned for that.
//!
//! [`language`]: super::language

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Mutex,
    thread,
};

use minijinja::{
    AutoEscape, Error, ErrorKind, Value,
    machinery::{self, CodeGenerator, Instruction, Instructions},
};

use super::{
    budget::{self, Mode},
    language::{FILTERS, LANGUAGE},
    marks,
};
use crate::base::sync::lock;

/// The longest template. What it writes is bounded by [`budget`], this bounds what is kept of it, and how
/// deep it can be nested.
pub(super) const LONGEST: usize = 16 * 1024;

/// Bytes of different conditions of requests that are compiled as long as the process runs: each is kept.
const REQUESTED: usize = 4 * 1024 * 1024;

/// The stack on which a template is compiled. The engine calls itself for each operator of a chain: the
/// deepest template of [`LONGEST`] takes a quarter of this. What is not used is not taken.
const STACK: usize = 64 * 1024 * 1024;

pub(super) struct Code {
    main: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
    /// The variables that it looks at.
    pub(super) uses: HashSet<String>,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.main.source())
    }
}

/// The texts that are kept for as long as the process runs, once however often they are compiled: the
/// engine borrows its source. There are as many as templates were ever configured, and what requests bring
/// within their limit.
#[derive(Debug, Default)]
struct Texts {
    all: BTreeSet<&'static str>,
    /// Bytes of those that a request brought.
    requested: usize,
}

static TEXTS: Mutex<Texts> = Mutex::new(Texts { all: BTreeSet::new(), requested: 0 });

impl Texts {
    /// `limit`: bytes that requests may bring; `None` where the text is configured.
    fn keep(&mut self, text: &str, limit: Option<usize>) -> Result<&'static str, String> {
        if let Some(known) = self.all.get(text) {
            return Ok(known);
        }
        if let Some(limit) = limit {
            let requested = self.requested + text.len();
            if requested > limit {
                return Err(format!(
                    "more than {limit} bytes of different conditions were requested since the relay \
                     started: use one of those, or restart it"
                ));
            }
            self.requested = requested;
        }
        let kept: &'static str = text.to_owned().leak();
        self.all.insert(kept);
        Ok(kept)
    }
}

fn kept(text: &str, limit: Option<usize>) -> Result<&'static str, String> {
    if text.len() > LONGEST {
        return Err(format!("it is longer than {LONGEST} bytes"));
    }
    if text.contains(marks::is_mark) {
        return Err("it holds a character that is used to mark values".into());
    }
    lock(&TEXTS).keep(text, limit)
}

impl Code {
    pub(super) fn template(text: &str) -> Result<Self, String> {
        let text = kept(text, None)?;
        on_a_large_stack(|| Self::compile_template(text))
    }

    fn compile_template(text: &'static str) -> Result<Self, String> {
        let whole = LANGUAGE
            .template_from_named_str("template", text)
            .map_err(|error| error.to_string())?;
        let uses = whole.undeclared_variables(false);
        let parsed = machinery::parse(text, "template", minijinja::syntax::SyntaxConfig::default());
        let mut generator = CodeGenerator::new("template", text);
        generator.compile_stmt(&parsed.map_err(|error| error.to_string())?);
        let (main, blocks) = generator.finish();
        let blocks = blocks.iter().map(|(name, block)| Ok((*name, rewritten(block)?)));
        Ok(Self { main: rewritten(&main)?, blocks: blocks.collect::<Result<_, String>>()?, uses })
    }

    pub(super) fn expression(text: &str) -> Result<Self, String> {
        let text = kept(text, None)?;
        on_a_large_stack(|| Self::compile_expression(text))
    }

    /// An expression that a request brings.
    pub(super) fn requested(text: &str) -> Result<Self, String> {
        let text = kept(text, Some(REQUESTED))?;
        on_a_large_stack(|| Self::compile_expression(text))
    }

    fn compile_expression(text: &'static str) -> Result<Self, String> {
        let whole = LANGUAGE.compile_expression(text).map_err(|error| error.to_string())?;
        let uses = whole.undeclared_variables(false);
        let parsed = machinery::parse_expr(text).map_err(|error| error.to_string())?;
        // Behind a text the library takes what is no part of the language for the end.
        machinery::parse_expr(&format!("({text}\n)")).map_err(|error| error.to_string())?;
        let mut generator = CodeGenerator::new("<expression>", text);
        generator.compile_expr(&parsed);
        let (main, _) = generator.finish();
        Ok(Self { main: rewritten(&main)?, blocks: BTreeMap::new(), uses })
    }

    /// Runs a template; its output, marked as `mode` wants.
    pub(super) fn render(&self, view: &Value, mode: Mode) -> Result<String, Error> {
        let mut text = String::new();
        self.run(view, mode, &mut text)?;
        Ok(text)
    }

    pub(super) fn evaluate(&self, view: &Value) -> Result<Value, Error> {
        let value = self.run(view, Mode::Text, &mut String::new())?;
        value.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "the expression has no value"))
    }

    fn run(&self, view: &Value, mode: Mode, into: &mut String) -> Result<Option<Value>, Error> {
        budget::begin(mode);
        let mut output = machinery::make_string_output(into);
        // With an escaping of its own, what is captured counts as the template's, with its marks.
        let escape = AutoEscape::Custom("marks".into());
        let (main, blocks) = (&self.main, &self.blocks);
        // Whatever an event holds, a template can fail and never more.
        let run = catch_unwind(AssertUnwindSafe(|| {
            machinery::eval(&LANGUAGE, main, view.clone(), blocks, &mut output, escape)
        }));
        let run = run.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::InvalidOperation, "the template engine has failed at it"))
        });
        Ok(run?.0)
    }
}

/// Does `work` where it may call itself as often as [`LONGEST`] allows. A panic is an error.
fn on_a_large_stack<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("compile".into()).stack_size(STACK);
        let thread = builder.spawn_scoped(scope, work).map_err(|error| error.to_string())?;
        thread.join().unwrap_or_else(|_| Err("the template engine has failed at it".into()))
    })
}

/// What stands in place of an instruction.
fn replaced(instruction: &Instruction<'static>) -> Result<Vec<Instruction<'static>>, String> {
    use Instruction as I;
    let call = |name, arguments| I::CallFunction(name, Some(arguments));
    let constant = |text: &str| I::LoadConst(Value::from_safe_string(text.to_owned()));
    let unavailable = |what: &str| Err(format!("there is no {what} here: a template stands alone"));
    Ok(vec![match instruction {
        I::EmitRaw(text) => return Ok(vec![constant(text), I::Emit]),
        I::LoadConst(value) => match value.as_str() {
            Some(text) => constant(text),
            // An `if` without an `else` that is not so writes nothing, also where JSON is made.
            None if value.is_undefined() => constant(""),
            None => return Ok(vec![instruction.clone()]),
        },
        I::Iterate(_) => {
            return Ok(vec![instruction.clone(), call("time is left", 0), I::DiscardTop]);
        }
        // A marked text is looked into, or asked whether it is empty, as it is shown.
        I::PushLoop(_)
        | I::FastRecurse
        | I::Not
        | I::JumpIfFalse(_)
        | I::CallFunction("loop", Some(1)) => {
            return Ok(vec![call("as shown", 1), instruction.clone()]);
        }
        I::JumpIfFalseOrPop(target) => {
            let jump = I::JumpIfFalse(*target);
            return Ok(vec![I::DupTop, call("as shown", 1), jump, I::DiscardTop]);
        }
        I::JumpIfTrueOrPop(target) => {
            let jump = I::JumpIfFalse(*target);
            return Ok(vec![I::DupTop, call("as shown", 1), I::Not, jump, I::DiscardTop]);
        }
        I::GetItem => {
            let shown = call("as shown", 1);
            return Ok(vec![shown.clone(), I::Swap, shown, I::Swap, I::GetItem]);
        }
        // What is captured is always the template's, with its marks.
        I::PushAutoEscape => I::DiscardTop,
        I::PopAutoEscape => return Ok(Vec::new()),
        I::SetAttr(name) => return Ok(vec![constant(name), call("set in", 3), I::DiscardTop]),
        I::Add => call("+", 2),
        I::Mul => call("*", 2),
        I::StringConcat => call("~", 2),
        I::Slice => call("[:]", 4),
        I::Eq => call("==", 2),
        I::Ne => call("!=", 2),
        I::Lt => call("<", 2),
        I::Lte => call("<=", 2),
        I::Gt => call(">", 2),
        I::Gte => call(">=", 2),
        I::In => call("is in", 2),
        I::CompareAndPreserve(_) => {
            let name = match format!("{instruction:?}").as_str() {
                "CompareAndPreserve(Eq)" => "== and",
                "CompareAndPreserve(Ne)" => "!= and",
                "CompareAndPreserve(Lt)" => "< and",
                "CompareAndPreserve(Lte)" => "<= and",
                "CompareAndPreserve(Gt)" => "> and",
                "CompareAndPreserve(Gte)" => ">= and",
                _ => return Err("in cannot stand in a chain of comparisons: use and".into()),
            };
            return Ok(vec![call(name, 2), I::UnpackList(2)]);
        }
        I::BuildList(Some(count)) => call("[]", arguments(*count)?),
        I::BuildMap(count) => call("{}", arguments(count.saturating_mul(2))?),
        I::ApplyFilter(name, ..) if !FILTERS.iter().any(|known| known == name) => {
            return Err(format!("there is no filter {name:?}: use one of {}", FILTERS.join(", ")));
        }
        I::Include(_) => return unavailable("include or import"),
        I::LoadBlocks => return unavailable("extends"),
        other => other.clone(),
    }])
}

fn arguments(count: usize) -> Result<u16, String> {
    u16::try_from(count).map_err(|_| "a list or map is too long".to_owned())
}

fn rewritten(code: &Instructions<'static>) -> Result<Instructions<'static>, String> {
    let all = (0..).map_while(|at| code.get(at));
    let parts = all.map(replaced).collect::<Result<Vec<_>, _>>()?;
    // Where each of the old instructions begins among the new ones, and behind the last.
    let mut begins = vec![0_u32];
    for part in &parts {
        let length = u32::try_from(part.len()).unwrap_or(0);
        begins.push(begins.last().copied().unwrap_or(0) + length);
    }
    let moved = |target: u32| {
        let target = usize::try_from(target).ok().and_then(|target| begins.get(target));
        target.copied().ok_or_else(|| "a jump to nowhere".to_owned())
    };
    let mut made = Instructions::new(code.name(), code.source());
    for (part, at) in parts.into_iter().zip(0..) {
        for mut instruction in part {
            use Instruction as I;
            match &mut instruction {
                I::Iterate(target)
                | I::Jump(target)
                | I::JumpIfFalse(target)
                | I::BuildMacro(_, target, _) => *target = moved(*target)?,
                _ => {}
            }
            match (code.get_span(at), code.get_line(at)) {
                (Some(span), _) => made.add_with_span(instruction, span),
                (None, Some(line)) => {
                    made.add_with_line(instruction, u16::try_from(line).unwrap_or(u16::MAX))
                }
                (None, None) => made.add(instruction),
            };
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_requests_bring_is_kept_up_to_a_limit() {
        let mut texts = Texts::default();
        let limit = Some(10);
        assert_eq!(texts.keep("1 == 1", limit), Ok("1 == 1"));
        assert_eq!(texts.keep("1 == 1", limit), Ok("1 == 1"), "it is known");
        assert!(texts.keep("2 == 2", limit).unwrap_err().contains("more than 10 bytes"));
        assert_eq!(texts.keep("2 == 2", None), Ok("2 == 2"), "it is configured");
        assert_eq!(texts.keep("2 == 2", limit), Ok("2 == 2"));
        assert_eq!(texts.keep("true", limit), Ok("true"));
        assert!(texts.keep("false", limit).is_err());
    }
}
