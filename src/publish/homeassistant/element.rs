//! An element of the session as a sensor: its name, its unit, and what of it is the state.
//!
//! The vendor's names follow a pattern (`follower-session`, `tip-weekly-top-donator`); what follows it
//! gets a name that reads well, and the rest is shown under its own.
//!
//! What of a value is the state is read off the value (`count`, `name`,
//! `amount`), not off the element's name, because elements come that nobody has documented.

use serde_json::{Value, json};

use crate::base::json::set;

/// The largest number that can be set: what a double still holds to the cent.
pub(super) const MOST: u64 = 1_000_000_000;

/// What is shown of an element.
#[derive(Debug, PartialEq)]
pub(super) struct Shown {
    pub(super) name: String,
    pub(super) icon: &'static str,
    /// Whether the whole value is shown as attributes.
    pub(super) attributes: bool,
    /// Whether it can be set to a number.
    pub(super) is_goal: bool,
    /// Keys of the sensor.
    pub(super) own: Value,
}

/// A family of elements: what its name begins with.
struct Family {
    word: &'static str,
    icon: &'static str,
    /// What `count` counts, as a unit.
    count: &'static str,
    /// What `amount` counts, as a unit; empty: money of a currency that the session does not name.
    amount: &'static str,
    /// In names: the many, the one, and who did the most of it.
    many: &'static str,
    one: &'static str,
    top: &'static str,
}

const fn family(
    word: &'static str,
    icon: &'static str,
    [count, amount]: [&'static str; 2],
    [many, one, top]: [&'static str; 3],
) -> Family {
    Family { word, icon, count, amount, many, one, top }
}

/// The families that the vendor documents, and what it calls Jewels: word, icon, units, names. From the longest
/// word to the shortest, so that the first that fits is the right one.
const FAMILIES: &[Family] = &[
    family(
        "charityCampaignDonation",
        "mdi:hand-heart",
        ["donations", ""],
        ["Charity donations", "charity donation", "charity donor"],
    ),
    family(
        "subscriber-gifted",
        "mdi:gift",
        ["subscribers", "subscribers"],
        ["Gifted subscriptions", "gifted subscription", "gifter"],
    ),
    family(
        "subscriber-resub",
        "mdi:star-plus",
        ["subscribers", "subscribers"],
        ["Resubscriptions", "resubscription", "resubscriber"],
    ),
    family(
        "subscriber-new",
        "mdi:star-outline",
        ["subscribers", "subscribers"],
        ["New subscribers", "new subscriber", "new subscriber"],
    ),
    family(
        "sponsor-gifted",
        "mdi:gift-outline",
        ["members", "members"],
        ["Gifted memberships", "gifted membership", "membership gifter"],
    ),
    family(
        "channel-points",
        "mdi:star-four-points-circle",
        ["redemptions", "points"],
        ["Channel points", "channel points redemption", "redeemer"],
    ),
    family(
        "cheerPurchase",
        "mdi:diamond-outline",
        ["cheers", "bits"],
        ["Cheer purchases", "cheer purchase", "cheer purchaser"],
    ),
    family(
        "subscriber",
        "mdi:star",
        ["subscribers", "subscribers"],
        ["Subscribers", "subscriber", "subscriber"],
    ),
    family(
        "superchat",
        "mdi:chat-plus",
        ["super chats", ""],
        ["Super chats", "super chat", "super chatter"],
    ),
    family(
        "hypetrain",
        "mdi:train",
        ["hype trains", ""],
        ["Hype train points", "hype train", "hype train contributor"],
    ),
    family("purchase", "mdi:cart", ["purchases", ""], ["Purchases", "purchase", "buyer"]),
    family(
        "follower",
        "mdi:account-heart",
        ["followers", "followers"],
        ["Followers", "follower", "follower"],
    ),
    family("sponsor", "mdi:star-circle", ["members", "members"], ["Members", "member", "member"]),
    family(
        "jewels",
        "mdi:diamond",
        ["gifts", "Jewels"],
        ["Jewels", "Jewels gift", "Jewels gifter"],
    ),
    family("cheer", "mdi:diamond-stone", ["cheers", "bits"], ["Bits", "cheer", "cheerer"]),
    family(
        "kicks",
        "mdi:alpha-k-circle",
        ["gifts", "KICKs"],
        ["KICKs", "KICKs gift", "KICKs gifter"],
    ),
    family("merch", "mdi:tshirt-crew", ["orders", ""], ["Merch", "merch order", "merch buyer"]),
    family("host", "mdi:access-point", ["hosts", "viewers"], ["Hosts", "host", "host"]),
    family("raid", "mdi:account-group", ["raids", "viewers"], ["Raids", "raid", "raider"]),
    family("tip", "mdi:cash", ["tips", ""], ["Tips", "tip", "tipper"]),
];

/// What is shown of an element; `None`: nothing of it fits into a state.
pub(super) fn shown(element: &str, value: &Value) -> Option<Shown> {
    let has = |key: &str, fits: fn(&Value) -> bool| value.get(key).is_some_and(fits);
    let family = FAMILIES.iter().find_map(|family| {
        let rest = element.strip_prefix(family.word)?.strip_prefix('-')?;
        Some((family, rest))
    });
    let (own, attributes) = match value {
        Value::Number(_) => (measured(NUMBER, element, ""), false),
        Value::Object(_) if has("count", Value::is_number) => {
            let unit = family.map_or("", |(family, _)| family.count);
            (measured(&field("count"), element, unit), false)
        }
        Value::Object(_) if has("name", Value::is_string) => {
            (json!({ "value_template": NAME }), true)
        }
        Value::Object(_) if has("amount", Value::is_number) => {
            let unit = family.filter(|(_, rest)| *rest != "points").map_or("", |(f, _)| f.amount);
            (measured(&field("amount"), element, unit), false)
        }
        _ => return None,
    };
    Some(Shown {
        name: match family {
            Some((family, rest)) => name_in(family.many, family.one, family.top, rest),
            None => name_of_unknown(element),
        }
        .unwrap_or_else(|| plainly(element)),
        icon: family.map_or("mdi:chart-box", |(family, _)| family.icon),
        attributes,
        // The hype train's are the platform's.
        is_goal: element.ends_with("-goal")
            && !element.starts_with(HYPE_TRAIN)
            && has("amount", Value::is_number),
        own,
    })
}

/// A sensor that measures. What is begun again now and then (a session, a week) only grows in between;
/// a total may shrink (a follower leaves); a goal is set at will.
fn measured(template: &str, element: &str, unit: &str) -> Value {
    let period = ["-session", "-week", "-month", "-count"];
    let class = if element.starts_with(HYPE_TRAIN) {
        "measurement"
    } else if period.iter().any(|end| element.ends_with(end)) {
        "total_increasing"
    } else if element.ends_with("-total") {
        "total"
    } else {
        "measurement"
    };
    let mut own = json!({ "value_template": template, "state_class": class });
    if !unit.is_empty() {
        set(&mut own, "unit_of_measurement", unit.into());
    }
    own
}

/// The elements of the hype train: figures of one that passes, none of which only grows.
const HYPE_TRAIN: &str = "hypetrain-";

/// The name of an element of a family that nobody has documented: under its own word, in the same pattern.
fn name_of_unknown(element: &str) -> Option<String> {
    const RESTS: [&str; 7] = ["latest", "session", "week", "month", "total", "count", "goal"];
    let (word, rest) = if let Some((before, what)) = element.split_once("-top-") {
        let (word, period) = before.rsplit_once('-')?;
        (word, format!("{period}-top-{what}"))
    } else {
        let (word, rest) = element.rsplit_once('-').filter(|(_, rest)| RESTS.contains(rest))?;
        (word, rest.to_owned())
    };
    let many = plainly(word);
    let one = many.to_lowercase();
    name_in(&many, &one, &format!("{one} giver"), &rest)
}

fn name_in(many: &str, one: &str, top: &str, rest: &str) -> Option<String> {
    let capital = || plainly(one);
    let name = match rest {
        "latest" => format!("Latest {one}"),
        "session" => format!("{many} this session"),
        "week" => format!("{many} this week"),
        "month" => format!("{many} this month"),
        "total" => format!("{many} in total"),
        "count" => format!("{} count", capital()),
        "goal" => format!("{} goal", capital()),
        "points" => format!("{} points", capital()),
        "level-goal" => format!("{} level goal", capital()),
        "level-progress" => format!("{} level progress", capital()),
        "alltime-gifter" => "Top gifter of all time".into(),
        rest => {
            let (period, what) = rest.split_once("-top-")?;
            let period = match period {
                "session" => "this session",
                "weekly" => "this week",
                "monthly" => "this month",
                "alltime" => "of all time",
                _ => return None,
            };
            match what {
                "donation" => format!("Top {one} {period}"),
                "donator" => format!("Top {top} {period}"),
                _ => return None,
            }
        }
    };
    Some(name)
}

/// A name of the vendor's, so that it reads as a name.
fn plainly(element: &str) -> String {
    capital(&crate::astro::activity::plainly(element))
}

/// With a capital letter in front.
pub(super) fn capital(words: &str) -> String {
    let mut letters = words.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// The template of who it was. The states that Home Assistant takes end at 255 characters; an empty one is
/// unknown.
pub(super) const NAME: &str =
    "{{ ((value_json | default({})).name | default('None', true))[:255] }}";

/// The template of a state that is a number. An empty message, when it is no more, is unknown.
const NUMBER: &str = "{{ value | default('None', true) }}";

/// A template for one field of a state: unknown where it is not there. A state that is no more is an
/// empty message, which is no JSON.
pub(super) fn field(name: &str) -> String {
    format!("{{{{ (value_json | default({{}})).{name} | default(none) }}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The families of the vendor's session data reference.
    #[test]
    fn every_documented_family_has_a_row() {
        for word in [
            "tip", "merch", "purchase", "follower", "subscriber", "subscriber-gifted",
            "subscriber-new", "subscriber-resub", "host", "raid", "cheer", "channel-points",
            "hypetrain", "charityCampaignDonation", "cheerPurchase", "sponsor", "sponsor-gifted",
            "superchat", "kicks",
        ] {
            let element = format!("{word}-latest");
            let shown = shown(&element, &json!({"name": "Ann", "amount": 5})).unwrap();
            let row = FAMILIES.iter().find(|family| family.word == word);
            assert_eq!(row.map(|row| row.icon), Some(shown.icon), "{word}");
            assert!(shown.name.starts_with("Latest "), "{word}: {}", shown.name);
        }
        let lengths: Vec<usize> = FAMILIES.iter().map(|family| family.word.len()).collect();
        assert!(lengths.is_sorted_by(|one, other| one >= other), "{lengths:?}");
        let mut icons: Vec<&str> = FAMILIES.iter().map(|family| family.icon).collect();
        icons.sort_unstable();
        icons.dedup();
        assert_eq!(icons.len(), FAMILIES.len());
    }

    #[test]
    fn the_newer_and_the_unknown_families_read_well() {
        for (element, value, name, unit, class) in [
            ("kicks-week", json!({"amount": 50}), "KICKs this week", "KICKs", "total_increasing"),
            ("kicks-count", json!({"count": 2}), "KICKs gift count", "gifts", "total_increasing"),
            ("jewels-total", json!({"amount": 5}), "Jewels in total", "Jewels", "total"),
            (
                "superchat-month",
                json!({"count": 2}),
                "Super chats this month",
                "super chats",
                "total_increasing",
            ),
            (
                "hypetrain-level-goal",
                json!({"amount": 2}),
                "Hype train level goal",
                "",
                "measurement",
            ),
            (
                "hypetrain-total",
                json!({"amount": 2}),
                "Hype train points in total",
                "",
                "measurement",
            ),
            (
                "megaKicks-session",
                json!({"amount": 9}),
                "Mega kicks this session",
                "",
                "total_increasing",
            ),
        ] {
            let shown = shown(element, &value).unwrap();
            let found = shown.own.get("unit_of_measurement").and_then(Value::as_str);
            assert_eq!((&*shown.name, found.unwrap_or("")), (name, unit), "{element}");
            assert_eq!(shown.own["state_class"], class, "{element}");
            assert!(!shown.is_goal, "{element}");
        }
        for (element, name) in [
            ("charityCampaignDonation-latest", "Latest charity donation"),
            ("charityCampaignDonation-weekly-top-donator", "Top charity donor this week"),
            ("cheerPurchase-alltime-top-donation", "Top cheer purchase of all time"),
            ("sponsor-gifted-latest", "Latest gifted membership"),
            ("channel-points-latest", "Latest channel points redemption"),
            ("purchase-latest", "Latest purchase"),
            ("hypetrain-latest", "Latest hype train"),
            ("kicks-session-top-donator", "Top KICKs gifter this session"),
            ("megaKicks-latest", "Latest mega kicks"),
            ("mega-kicks-monthly-top-donation", "Top mega kicks this month"),
        ] {
            let shown = shown(element, &json!({"name": "Ann", "amount": 5})).unwrap();
            assert_eq!(shown.name, name);
        }
    }

    #[test]
    fn an_element_reads_well() {
        for (element, value, name, unit, class) in [
            (
                "follower-session",
                json!({"count": 11}),
                "Followers this session",
                "followers",
                "total_increasing",
            ),
            ("follower-goal", json!({"amount": 11}), "Follower goal", "followers", "measurement"),
            ("follower-total", json!({"count": 13}), "Followers in total", "followers", "total"),
            ("subscriber-points", json!({"amount": 189}), "Subscriber points", "", "measurement"),
            (
                "subscriber-resub-session",
                json!({"count": 68}),
                "Resubscriptions this session",
                "subscribers",
                "total_increasing",
            ),
            ("cheer-week", json!({"amount": 246}), "Bits this week", "bits", "total_increasing"),
            ("cheer-count", json!({"count": 8}), "Cheer count", "cheers", "total_increasing"),
            ("tip-month", json!({"amount": 279.5}), "Tips this month", "", "total_increasing"),
            ("merch-goal-items", json!({"amount": 0}), "Merch goal items", "", "measurement"),
            ("something-new", json!({"amount": 1}), "Something new", "", "measurement"),
            ("bare", json!(5), "Bare", "", "measurement"),
        ] {
            let shown = shown(element, &value).unwrap();
            assert_eq!(shown.name, name);
            assert_eq!(
                shown.own.get("unit_of_measurement").and_then(Value::as_str).unwrap_or(""),
                unit,
                "{element}"
            );
            assert_eq!(shown.own["state_class"], class, "{element}");
            assert_eq!(shown.is_goal, element == "follower-goal");
            assert!(!shown.attributes);
        }
        for (element, name) in [
            ("tip-latest", "Latest tip"),
            ("cheer-weekly-top-donator", "Top cheerer this week"),
            ("tip-alltime-top-donation", "Top tip of all time"),
            ("subscriber-alltime-gifter", "Top gifter of all time"),
            ("tip-yearly-top-donation", "Tip yearly top donation"),
        ] {
            let shown = shown(element, &json!({"name": "Ann", "amount": 5})).unwrap();
            assert_eq!(shown.name, name);
            assert!(shown.attributes && !shown.is_goal && shown.own.get("state_class").is_none());
        }
        for value in [json!([]), json!({}), json!(null), json!({"name": null}), json!(true)] {
            assert_eq!(shown("follower-recent", &value), None, "{value}");
        }
    }
}
