//! Durations and sizes as people write them: `100ms`, `1.5s`, `2 min`, `7d`; `256MiB`, `1.5 GiB`, `65536`.

use std::{borrow::Cow, fmt, time::Duration};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{Start, Sync};

/// A duration, written with its unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(pub Duration);

/// A number of bytes, written with its unit or without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// Units of [`Size`], longest first so that a suffix is not mistaken for a shorter one.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("b", 1),
];

/// The longest duration: 100 years. Added to a moment, or to another, it is one still, also in nanoseconds of
/// 64 bits.
const LONGEST: Duration = Duration::from_hours(100 * 8766);

const TOO_LONG: &str = "a duration of at most 100 years was expected";

impl Period {
    /// Reads `90s`, `1h 30m`, `500 ms`, `1.5s`. Capitals make a difference only where both are units: `1m`
    /// is a minute, `1M` a month.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let read = humantime::parse_duration(text)
            .or_else(|_| humantime::parse_duration(&text.to_lowercase()));
        match read {
            Ok(time) if time <= LONGEST => Ok(Self(time)),
            Ok(_) => Err(TOO_LONG.to_owned()),
            Err(_) => Err(Format::Period.expected().to_owned()),
        }
    }
}

impl Size {
    /// Reads `256MiB`, `8 MB`, `1.5GiB`, `65536`. What is less than a byte is left out.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let (digits, factor) = SIZE_UNITS
            .iter()
            .find_map(|(unit, factor)| lower.strip_suffix(unit).map(|rest| (rest, *factor)))
            .unwrap_or((&lower, 1));
        times(digits.trim(), factor).map(Self).ok_or_else(|| Format::Size.expected().to_owned())
    }

    /// As a length in memory; a size beyond the address space is its end.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A decimal number, with a fraction or without, times a unit. Bytes have no fraction.
fn times(number: &str, factor: u64) -> Option<u64> {
    let plain = |digits: &str| !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let Some((whole, fraction)) = number.split_once('.') else {
        return number.parse::<u64>().ok().filter(|_| plain(number))?.checked_mul(factor);
    };
    if !plain(whole) || !plain(fraction) || factor == 1 {
        return None;
    }
    let tens = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    let rest = fraction.parse::<u128>().ok()?.checked_mul(factor.into())? / tens;
    whole.parse::<u64>().ok()?.checked_mul(factor)?.checked_add(u64::try_from(rest).ok()?)
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = [("TiB", 1_u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
            .into_iter()
            .find(|(_, factor)| self.0 >= *factor && self.0.is_multiple_of(*factor));
        match fitting {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// What a text in the configuration must be: the `format` of the JSON Schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// [`Period`].
    Period,
    /// [`Size`].
    Size,
    /// [`Sync`].
    Sync,
    /// [`Start`].
    Start,
}

impl Format {
    /// All of them.
    const ALL: [Self; 4] = [Self::Period, Self::Size, Self::Sync, Self::Start];

    /// The word in the schema.
    fn word(self) -> &'static str {
        match self {
            Self::Period => "period",
            Self::Size => "size",
            Self::Sync => "sync",
            Self::Start => "start",
        }
    }

    /// The other direction; a word that is not ours is `None`.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.word() == word)
    }

    /// What is expected. Never shows what is there: it may be a secret in the wrong place.
    pub fn expected(self) -> &'static str {
        match self {
            Self::Period => "a duration such as \"30s\" or \"7d\" was expected",
            Self::Size => "a size such as \"256MiB\" was expected",
            Self::Sync => "\"always\", \"never\" or an interval such as \"100ms\" was expected",
            Self::Start => "\"end\", \"earliest\" or an age such as \"2h\" was expected",
        }
    }

    /// What is expected instead, where `text` is not of this format.
    pub fn validate(self, text: &str) -> Result<(), String> {
        match self {
            Self::Period => Period::parse(text).map(drop),
            Self::Size => Size::parse(text).map(drop),
            Self::Sync => parse_sync(text).map(drop),
            Self::Start => parse_start(text).map(drop),
        }
    }

    /// What is expected where a duration may stand, and the one that stands there was refused.
    fn refusal(self, why: String) -> String {
        if why == TOO_LONG { why } else { self.expected().to_owned() }
    }
}

/// A type that is written as text in the configuration.
macro_rules! as_text {
    ($type:ty, $name:literal, $format:expr, $description:literal, $parse:expr, $show:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                $parse(&text).map_err(D::Error::custom)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&$show(self))
            }
        }
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "format": $format.word(),
                    "description": $description
                })
            }
        }
    };
}

as_text!(
    Period,
    "Period",
    Format::Period,
    "a duration with its unit, such as 30s or 7d",
    Period::parse,
    Period::to_string
);
as_text!(
    Size,
    "Size",
    Format::Size,
    "a number of bytes with its unit, such as 256MiB",
    Size::parse,
    Size::to_string
);
as_text!(
    Sync,
    "Sync",
    Format::Sync,
    "always, never, or an interval such as 100ms",
    parse_sync,
    show_sync
);
as_text!(
    Start,
    "Start",
    Format::Start,
    "end, earliest, or an age such as 2h",
    parse_start,
    show_start
);

fn parse_sync(text: &str) -> Result<Sync, String> {
    match text {
        "always" => Ok(Sync::Always),
        "never" => Ok(Sync::Never),
        interval => match Period::parse(interval) {
            Ok(Period(Duration::ZERO)) => Ok(Sync::Always),
            Ok(Period(every)) => Ok(Sync::Every(every)),
            Err(why) => Err(Format::Sync.refusal(why)),
        },
    }
}

fn show_sync(sync: &Sync) -> String {
    match sync {
        Sync::Always => "always".into(),
        Sync::Never => "never".into(),
        Sync::Every(interval) => Period(*interval).to_string(),
    }
}

fn parse_start(text: &str) -> Result<Start, String> {
    match text {
        "end" => Ok(Start::End),
        "earliest" => Ok(Start::Earliest),
        age => Period::parse(age)
            .map(|Period(age)| Start::Age(age))
            .map_err(|why| Format::Start.refusal(why)),
    }
}

fn show_start(start: &Start) -> String {
    match start {
        Start::End => "end".into(),
        Start::Earliest => "earliest".into(),
        Start::Age(age) => Period(*age).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_units() {
        for (text, bytes) in [
            ("65536", 65_536),
            ("256MiB", 268_435_456),
            ("8 MB", 8_000_000),
            ("1kib", 1024),
            ("7B", 7),
            ("1.5GiB", 1_610_612_736),
            (" 1.5 gib ", 1_610_612_736),
            ("0.5 MiB", 524_288),
            ("2.50MB", 2_500_000),
            ("0.1KiB", 102),
            ("16777215.9 TiB", 18_446_743_963_758_388_838),
        ] {
            assert_eq!(Size::parse(text), Ok(Size(bytes)), "{text}");
        }
        let long = format!("1.{}GiB", "1".repeat(400));
        for text in [
            "", "MiB", "-1", "+1", "1.5", "1.5B", "1.GiB", ".5GiB", "1,5GiB", "1.5.5GiB", "1e3MiB",
            "1 5MiB", "99999999999TiB", "16777216TiB", "8 XB", &long,
        ] {
            assert!(Size::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_with_fractions_and_blanks() {
        for (text, millis) in [
            ("1.5s", 1_500),
            ("1.5 s", 1_500),
            ("0.25s", 250),
            ("500 ms", 500),
            (" 500ms ", 500),
            ("1 min", 60_000),
            ("1min", 60_000),
            ("2 minutes", 120_000),
            ("1.5h", 5_400_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("1.5 days", 129_600_000),
            ("30S", 30_000),
            ("2 Hours", 7_200_000),
            ("0", 0),
            ("0s", 0),
        ] {
            let period = Period(Duration::from_millis(millis));
            assert_eq!(Period::parse(text), Ok(period), "{text}");
            assert_eq!(Format::Period.validate(text), Ok(()), "{text}");
            assert_eq!(parse_start(text), Ok(Start::Age(period.0)), "{text}");
        }
        for text in ["", "s", "30", "1.5", "-1s", "1,5s", "1.s", "1.5.5s", "1e3s", "half a minute"]
        {
            assert!(Period::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_of_more_than_a_hundred_years_is_refused() {
        let longest = Period::parse("100y").unwrap().0;
        assert_eq!(longest, LONGEST);
        // As NATS has them.
        assert!(i64::try_from((longest + longest).as_nanos()).is_ok());
        for text in ["101y", "290000000000y", "500000000000y"] {
            assert_eq!(Period::parse(text), Err(TOO_LONG.to_owned()), "{text}");
            for format in [Format::Period, Format::Sync, Format::Start] {
                assert_eq!(format.validate(text), Err(TOO_LONG.to_owned()), "{text}");
            }
        }
    }

    #[test]
    fn what_is_shown_is_read_again() {
        for size in [0, 1, 1024, 1_000_000, 268_435_456] {
            assert_eq!(Size::parse(&Size(size).to_string()), Ok(Size(size)));
        }
        for sync in [Sync::Always, Sync::Never, Sync::Every(Duration::from_millis(100))] {
            assert_eq!(parse_sync(&show_sync(&sync)), Ok(sync));
        }
        for start in [Start::End, Start::Earliest, Start::Age(Duration::from_hours(2))] {
            assert_eq!(parse_start(&show_start(&start)), Ok(start));
        }
    }
}
