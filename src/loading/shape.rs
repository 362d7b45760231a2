//! The shape of a configuration: every key known, every value of its type, nothing missing.
//!
//! The merged tables are walked along the JSON Schema. What comes from the environment or the command
//! line is text and becomes what the schema wants there; the forms of a secret's key are folded into
//! one. What is wrong is reported and left out, so that the rest can still be checked.
//!
//! It does not know what the keys mean: contradictions are for [`crate::loading::check`].
//!
//! A message says what was expected and of which type the value is, never the
//! value.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::{
    base::nearest::nearest,
    config::{pasted, problem::Problem, secret::FORMS, units::Format},
    loading::{
        places::{Layer, Places},
        schema::{NAME_PATTERN, is_secret, keys, needs_secret, resolved},
    },
};

/// The longest name of a channel or a sink: it stands in metrics, variables and file names.
const LONGEST_NAME: usize = 64;

/// Whose home it is depends on who starts the relay: mostly that is a service.
const NO_HOME: &str = "`~` is not expanded here: write the whole path";

/// Keys as other programs call them, and as they are called here.
const OTHER_NAMES: [(&str, &str); 1] = [("username", "user")];

/// What a walk found.
pub(crate) struct Shape {
    /// What is well shaped.
    pub(crate) value: Value,
    /// What is wrong.
    pub(crate) problems: Vec<Problem>,
    /// Keys whose value was left out, or is missing though it is needed.
    pub(crate) unusable: BTreeSet<Vec<String>>,
}

impl Shape {
    /// Whether nothing at `path` or below it was left out.
    pub(crate) fn whole(&self, path: &[&str]) -> bool {
        !self.unusable.iter().any(|key| {
            key.len() >= path.len() && key.iter().zip(path).all(|(part, wanted)| part == wanted)
        })
    }
}

/// Walks `found` along `schema`.
pub(crate) fn walk(schema: &Value, places: &Places<'_>, found: Value) -> Shape {
    let mut walk = Walk {
        root: schema,
        places,
        path: Vec::new(),
        problems: Vec::new(),
        unusable: BTreeSet::new(),
    };
    let value = walk.value(schema, found).unwrap_or_else(|| json!({}));
    Shape { value, problems: walk.problems, unusable: walk.unusable }
}

struct Walk<'a> {
    root: &'a Value,
    places: &'a Places<'a>,
    path: Vec<String>,
    problems: Vec<Problem>,
    unusable: BTreeSet<Vec<String>>,
}

impl<'a> Walk<'a> {
    /// The value as the schema wants it; `None` where it is wrong, and that is reported.
    fn value(&mut self, schema: &'a Value, found: Value) -> Option<Value> {
        let schema = resolved(self.root, schema);
        if let Some(words) = words(schema) {
            return self.word(&words, found);
        }
        if let Some(choices) = choices(schema) {
            return self.choice(choices, found);
        }
        let found = match found {
            Value::String(text) if self.places.layer(&self.path) != Layer::File => {
                self.coerced(schema, text)?
            }
            found => found,
        };
        match (kind(schema), found) {
            ("object", Value::Object(table)) => Some(self.table(schema, table)),
            ("array", Value::Array(list)) => self.list(schema, list),
            ("string", Value::String(text)) => {
                match format(schema).map_or(Ok(()), |format| format.validate(&text)) {
                    Ok(()) => Some(Value::String(text)),
                    Err(why) => self.wrong(why),
                }
            }
            ("boolean", found @ Value::Bool(_)) | ("", found) => Some(found),
            ("integer", Value::Number(number)) if number.is_i64() || number.is_u64() => {
                self.number(schema, number.into())
            }
            ("number", Value::Number(number)) => self.number(schema, number.into()),
            (_, found) => {
                let found = type_of(&found);
                self.wrong(format!("{}, not {found}", expected(schema)))
            }
        }
    }

    fn wrong(&mut self, message: impl Into<String>) -> Option<Value> {
        self.problems.push(Problem::new(self.path.clone(), message));
        self.unusable.insert(self.path.clone());
        None
    }

    fn at<T>(&mut self, part: impl Into<String>, go: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(part.into());
        let outcome = go(self);
        self.path.pop();
        outcome
    }

    /// Text from outside the file, as the type that is wanted.
    fn coerced(&mut self, schema: &Value, text: String) -> Option<Value> {
        let trimmed = text.trim();
        let read = match kind(schema) {
            "boolean" => trimmed.to_ascii_lowercase().parse::<bool>().ok().map(Value::from),
            "integer" => trimmed
                .parse::<u64>()
                .map(Value::from)
                .or_else(|_| trimmed.parse::<i64>().map(Value::from))
                .ok(),
            "number" => trimmed.parse::<f64>().ok().map(Value::from),
            "array" if trimmed.starts_with('[') => serde_json::from_str(trimmed).ok(),
            "array" if trimmed.is_empty() => Some(json!([])),
            "array" => Some(trimmed.split(',').map(|part| Value::from(part.trim())).collect()),
            "object" => serde_json::from_str(trimmed).ok(),
            _ => Some(Value::String(text)),
        };
        if read.is_none() {
            let hint = match kind(schema) {
                "array" => ", as a,b or as JSON",
                "object" => " as JSON",
                _ => "",
            };
            return self.wrong(format!("{}{hint}", expected(schema)));
        }
        read
    }

    fn number(&mut self, schema: &Value, found: Value) -> Option<Value> {
        let limit = |key: &str| schema.get(key).and_then(Value::as_f64);
        let value = found.as_f64();
        let low = limit("minimum").zip(value).is_some_and(|(least, value)| value < least);
        let high = limit("maximum").zip(value).is_some_and(|(most, value)| value > most);
        if low || high { self.wrong(expected(schema)) } else { Some(found) }
    }

    fn list(&mut self, schema: &'a Value, list: Vec<Value>) -> Option<Value> {
        let Some(items) = schema.get("items") else { return Some(Value::Array(list)) };
        let wanted = list.len();
        let values: Vec<Value> = list
            .into_iter()
            .enumerate()
            .filter_map(|(index, value)| {
                self.at(format!("[{index}]"), |walk| walk.value(items, value))
            })
            .collect();
        // Without one of its elements the others would be checked under wrong numbers.
        (values.len() == wanted).then_some(Value::Array(values))
    }

    fn word(&mut self, words: &[&str], found: Value) -> Option<Value> {
        let expected = match words {
            [word] => format!("{word:?} was expected"),
            _ => format!("one of {} was expected", words.join(", ")),
        };
        match found {
            Value::String(text) if words.contains(&text.as_str()) => Some(Value::String(text)),
            Value::String(text) => {
                let problem = Problem::new(self.path.clone(), expected);
                self.problems.push(problem.suggest(nearest(&text, words.iter().copied())));
                self.unusable.insert(self.path.clone());
                None
            }
            other => self.wrong(format!("{expected}, not {}", type_of(&other))),
        }
    }

    /// One of several schemas: by the constant in `type`, or the first that fits.
    fn choice(&mut self, choices: &'a [Value], found: Value) -> Option<Value> {
        let root = self.root;
        let resolved_choices = || choices.iter().map(move |choice| resolved(root, choice));
        let constant = |choice: &'a Value| choice.pointer("/properties/type/const")?.as_str();
        let types: Vec<&str> = resolved_choices().filter_map(constant).collect();
        if !types.is_empty() {
            return self.by_type(&types, resolved_choices(), found);
        }
        // Where only one of them takes a value of this type, what is wrong is wrong in that one.
        let of_type = |choice: &&'a Value| match &found {
            Value::Array(_) => kind(choice) == "array",
            Value::Object(_) => kind(choice) == "object",
            _ => false,
        };
        let fitting: Vec<&'a Value> = resolved_choices().filter(of_type).collect();
        if let [only] = *fitting {
            return self.value(only, found);
        }
        let before = (self.problems.len(), self.unusable.clone());
        for choice in resolved_choices() {
            let outcome = self.value(choice, found.clone());
            if outcome.is_some() && self.problems.len() == before.0 {
                return outcome;
            }
            self.problems.truncate(before.0);
            self.unusable.clone_from(&before.1);
        }
        let wanted: Vec<String> = resolved_choices().map(expected).collect();
        self.wrong(wanted.join(", or "))
    }

    fn by_type(
        &mut self,
        types: &[&str],
        mut choices: impl Iterator<Item = &'a Value>,
        found: Value,
    ) -> Option<Value> {
        let found = match found {
            Value::String(text) if self.places.layer(&self.path) != Layer::File => {
                self.coerced(&json!({ "type": "object" }), text)?
            }
            found => found,
        };
        let Value::Object(table) = found else {
            return self.wrong(format!("a table was expected, not {}", type_of(&found)));
        };
        let Some(wanted) = table.get("type").cloned() else {
            let misspelt = nearest("type", table.keys().map(String::as_str));
            let misspelt = misspelt.map(|key| format!("; {key} is no key")).unwrap_or_default();
            let message = format!("is missing: one of {}{misspelt}", types.join(", "));
            return self.at("type", |walk| walk.wrong(message));
        };
        let wanted = self.at("type", |walk| walk.word(types, wanted))?;
        let position = types.iter().position(|&word| wanted == word)?;
        choices.nth(position).map(|schema| self.table(schema, table))
    }

    fn table(&mut self, schema: &'a Value, mut table: Map<String, Value>) -> Value {
        let properties = schema.get("properties").and_then(Value::as_object);
        let property = |key: &str| properties.and_then(|properties| properties.get(key));
        let mut result = Map::new();
        for key in keys(schema) {
            if property(key).is_some_and(|property| is_secret(self.root, property)) {
                let secret = self.secret(key, &mut table, needs_secret(schema, key));
                result.extend(secret.map(|secret| (key.to_owned(), secret)));
            }
        }
        let rest = schema.get("additionalProperties").filter(|rest| rest.is_object());
        let named = schema.get("propertyNames").is_some();
        let mut present = BTreeSet::new();
        for (key, value) in table {
            present.insert(key.clone());
            match (property(&key), rest) {
                (Some(property), _) => {
                    let value = self.at(key.clone(), |walk| match value {
                        Value::String(text) if is_of_a_home(&key, &text) => walk.wrong(NO_HOME),
                        value => walk.value(property, value),
                    });
                    result.extend(value.map(|value| (key, value)));
                }
                (None, Some(rest)) => {
                    if named {
                        self.name(&key);
                    }
                    let value = self.at(key.clone(), |walk| walk.value(rest, value));
                    result.extend(value.map(|value| (key, value)));
                }
                (None, None) => self.unknown(schema, &key),
            }
        }
        let required = schema.get("required").and_then(Value::as_array).into_iter().flatten();
        for key in required.filter_map(Value::as_str).filter(|key| !present.contains(*key)) {
            let what = property(key).map(|property| what_is_missing(self.root, property));
            let message = format!("is missing: {}", what.unwrap_or_default());
            self.at(key, |walk| walk.wrong(message));
        }
        Value::Object(result)
    }

    /// A key that no schema knows. Its value is not looked at and not shown.
    fn unknown(&mut self, schema: &Value, key: &str) {
        let what = if self.path.is_empty() { "unknown section" } else { "unknown key" };
        let suggestion = nearest(key, keys(schema)).or_else(|| {
            let (_, ours) = OTHER_NAMES.iter().find(|(other, _)| *other == key)?;
            keys(schema).find(|known| known == ours)
        });
        let mut path = self.path.clone();
        path.push(key.to_owned());
        self.problems.push(Problem::new(path, what).suggest(suggestion));
    }

    /// A name of the user's own.
    fn name(&mut self, name: &str) {
        let fits = (1..=LONGEST_NAME).contains(&name.len())
            && name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-'));
        if !fits {
            debug_assert!(NAME_PATTERN.contains("{1,64}"), "the schema says the same");
            let mut path = self.path.clone();
            path.push(name.to_owned());
            let message = "a name has 1 to 64 of these: small letters, digits, underscore, hyphen (a-z 0-9 _ -)";
            let simpler: String = name
                .to_ascii_lowercase()
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' })
                .take(LONGEST_NAME)
                .collect();
            let simpler = Some(simpler.as_str())
                .filter(|simpler| !simpler.is_empty() && !pasted::looks_secret(name));
            self.problems.push(Problem::new(path, message).suggest(simpler));
        }
    }

    /// Folds the forms of a secret's key into one; the highest layer that has one holds.
    fn secret(&mut self, key: &str, table: &mut Map<String, Value>, needed: bool) -> Option<Value> {
        let mut given = Vec::new();
        for (suffix, form) in FORMS {
            let name = format!("{key}{suffix}");
            if let Some(value) = table.remove(&name) {
                let layer = self.at(name.clone(), |walk| walk.places.layer(&walk.path));
                given.push((layer, name, form, value));
            }
        }
        let Some(highest) = given.iter().map(|(layer, ..)| *layer).max() else {
            if needed {
                let message = format!(
                    "is missing: a secret, as {key}_file, {key}_env, {key}_credential or {key}"
                );
                self.at(key, |walk| walk.wrong(message));
            }
            return None;
        };
        given.retain(|(layer, ..)| *layer == highest);
        if let [(_, first, ..), (_, second, ..), ..] = given.as_slice() {
            let message = format!("is given twice, as {first} and as {second}: one must go");
            return self.at(second.clone(), |walk| walk.wrong(message));
        }
        let (_, name, form, value) = given.pop()?;
        let secret = self.at(name.clone(), |walk| match value {
            Value::String(text) if text.is_empty() => walk.wrong("is empty"),
            Value::String(text) if is_of_a_home(&name, &text) => walk.wrong(NO_HOME),
            Value::String(text) => Some(json!({ form: text })),
            other => walk.wrong(format!("a string was expected, not {}", type_of(&other))),
        });
        if secret.is_none() {
            self.at(key, |walk| walk.unusable.insert(walk.path.clone()));
        }
        secret
    }
}

/// Whether a key of ours names the path of a file, and it is written as only a shell reads it.
fn is_of_a_home(key: &str, text: &str) -> bool {
    (key == "dir" || key.ends_with("_file")) && (text == "~" || text.starts_with("~/"))
}

/// The words of a schema that allows nothing else.
pub(super) fn words(schema: &Value) -> Option<Vec<&str>> {
    if let Some(word) = schema.get("const") {
        return word.as_str().map(|word| vec![word]);
    }
    if let Some(words) = schema.get("enum").and_then(Value::as_array) {
        return words.iter().map(Value::as_str).collect();
    }
    let nested: Option<Vec<Vec<&str>>> = choices(schema)?.iter().map(words).collect();
    nested.map(|nested| nested.concat())
}

fn choices(schema: &Value) -> Option<&[Value]> {
    let choices = schema.get("oneOf").or_else(|| schema.get("anyOf"))?;
    choices.as_array().map(Vec::as_slice)
}

fn kind(schema: &Value) -> &str {
    schema.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn format(schema: &Value) -> Option<Format> {
    schema.get("format").and_then(Value::as_str).and_then(Format::from_word)
}

/// What a schema wants, in words.
fn expected(schema: &Value) -> String {
    if let Some(words) = words(schema) {
        return format!("one of {} was expected", words.join(", "));
    }
    if let Some(format) = format(schema) {
        return format.expected().to_owned();
    }
    let limit = |key: &str| schema.get(key).and_then(Value::as_f64);
    let what = match kind(schema) {
        "string" => "a string",
        "boolean" => "true or false",
        "integer" => "a whole number",
        "number" => "a number",
        "array" => "a list",
        "object" => "a table",
        _ => "another value",
    };
    match (limit("minimum"), limit("maximum")) {
        (Some(least), Some(most)) => format!("{what} from {least} to {most} was expected"),
        (Some(least), None) => format!("{what} of at least {least} was expected"),
        (None, Some(most)) => format!("{what} of at most {most} was expected"),
        (None, None) => format!("{what} was expected"),
    }
}

/// What a missing key wants, with the first sentence of what it is for.
fn what_is_missing(root: &Value, property: &Value) -> String {
    let expected = expected(resolved(root, property));
    let purpose = property.get("description").and_then(Value::as_str).unwrap_or_default();
    let sentence = purpose.split_inclusive('\n').next().unwrap_or_default();
    let sentence =
        sentence.split(". ").next().unwrap_or_default().trim().trim_end_matches(['.', ',']);
    if sentence.is_empty() { expected } else { format!("{expected} ({sentence})") }
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "a whole number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "a table",
    }
}
