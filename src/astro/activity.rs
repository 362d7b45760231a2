//! What an activity says, whichever topic brought it: its kind, who did it, how much of what.
//!
//! The vendor's words for kinds are open-ended. One that is not in [`KINDS`] keeps its own name, and where
//! it has an amount it counts as paid: what comes next is shown as itself, and never as nothing.
//!
//! It reads; what is made of it (an entity, a line for people) is for others to say.

use std::borrow::Cow;

use serde_json::{Map, Value};

/// The topic of activities.
pub const ACTIVITIES: &str = "channel.activities";

/// What the amount of an activity counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counts {
    /// Money, of a currency that the activity names, or of one that it does not.
    Money,
    /// Something that is bought with money, by its name.
    Bought(&'static str),
    /// Something else, by its name: months, viewers, points. Empty: nothing that has a name.
    Other(&'static str),
    /// The kind is not known: what it counts is named like the kind.
    Unknown,
}

/// A kind of activity that the vendor's documents name.
struct Kind {
    word: &'static str,
    /// For people.
    name: &'static str,
    /// The same in one or two small words, for a line.
    short: &'static str,
    counts: Counts,
}

const fn word(word: &'static str, name: &'static str, short: &'static str, counts: Counts) -> Kind {
    Kind { word, name, short, counts }
}

/// The words of `channel.activities`, and two that the vendor has announced without naming them.
const KINDS: &[Kind] = &[
    word("follow", "Follow", "follow", Counts::Other("")),
    word("follower", "Follow", "follow", Counts::Other("")),
    word("subscriber", "Subscription", "sub", Counts::Other("months")),
    word("communityGiftPurchase", "Community gift", "gifts", Counts::Other("gifts")),
    word("sponsor", "Membership", "member", Counts::Other("months")),
    word("fan", "Supporter", "fan", Counts::Other("months")),
    word("supporter", "Supporter", "supporter", Counts::Other("months")),
    word("tip", "Tip", "tip", Counts::Money),
    word("cheer", "Cheer", "cheer", Counts::Bought("bits")),
    word("cheerPurchase", "Cheer", "cheer", Counts::Bought("bits")),
    word("stars", "Stars", "stars", Counts::Bought("stars")),
    word("elixir", "Elixir", "elixir", Counts::Bought("elixir")),
    word("kicks", "KICKs", "kicks", Counts::Bought("KICKs")),
    word("jewels", "Jewels", "jewels", Counts::Bought("Jewels")),
    word("superchat", "Super Chat", "super chat", Counts::Money),
    word("merch", "Merch", "merch", Counts::Money),
    word("purchase", "Purchase", "merch", Counts::Money),
    word("charityCampaignDonation", "Charity donation", "charity", Counts::Money),
    word("raid", "Raid", "raid", Counts::Other("viewers")),
    word("host", "Host", "host", Counts::Other("viewers")),
    word("channelPointsRedemption", "Channel points", "points", Counts::Other("points")),
    word("redemption", "Redemption", "store", Counts::Other("points")),
    word("hypetrainStart", "Hype train start", "hype train", Counts::Other("")),
    word("hypetrainProgress", "Hype train progress", "hype train", Counts::Other("")),
    word("hypetrainEnd", "Hype train end", "hype train", Counts::Other("")),
    word("share", "Share", "share", Counts::Other("")),
    word("videolike", "Like", "like", Counts::Other("")),
    word("giveaway", "Giveaway", "giveaway", Counts::Other("")),
    word("sponsorship", "Sponsorship", "sponsorship", Counts::Other("")),
    word("sponsorshipPassive", "Sponsorship", "sponsorship", Counts::Other("")),
    word("event", "Event", "event", Counts::Other("")),
];

/// What an activity says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ActivityInfo {
    /// The vendor's own word for the kind: `tip`, `kicks`, `superchat`.
    pub kind: String,
    /// Who did it, as it is shown; `None`: nobody is named.
    pub user: Option<String>,
    /// A number, also where it was sent as text.
    pub amount: Option<Value>,
    /// Of money, where it is named.
    pub currency: Option<String>,
    pub message: Option<String>,
    /// What was redeemed.
    pub item: Option<String>,
    /// Who gave it, where it was given to `user`.
    pub sender: Option<String>,
    /// Somebody gave it to `user`.
    pub gifted: bool,
    pub tier: Option<String>,
    /// Of a hype train.
    pub level: Option<Value>,
    /// How many things were bought or given, beside `amount`.
    pub quantity: Option<Value>,
}

impl ActivityInfo {
    /// From the data of a message of this topic, live or from the history. `None`: the topic brings no
    /// activities, or this is none (a tip that waits for a moderator has not happened yet).
    pub fn of(topic: &str, data: &Value) -> Option<Self> {
        match topic {
            ACTIVITIES => Self::activity(data),
            "channel.tips" => {
                let is_held = text(data.get("approved")).is_some_and(|word| word != "allowed");
                if is_held { None } else { Self::tip(data) }
            }
            "channel.follow" => Some(Self::follow(data)),
            "channel.loyalty.redemptions" => Some(Self::redemption(data)),
            _ => None,
        }
    }

    /// Of a kind, without anything of what it says.
    pub fn named(kind: &str) -> Self {
        Self { kind: kind.to_owned(), ..Self::default() }
    }

    fn activity(data: &Value) -> Option<Self> {
        let kind = data.get("type").and_then(Value::as_str)?;
        let nothing = Map::new();
        let about = data.get("data").and_then(Value::as_object).unwrap_or(&nothing);
        let get = |key: &str| text(about.get(key));
        let sender = get("sender");
        let counts = ["quantity", "count", "bulkCount"];
        let items = about.get("items").and_then(Value::as_array);
        Some(Self {
            user: get("displayName").or_else(|| get("username")),
            amount: number(about.get("amount")),
            currency: get("currency"),
            message: get("message"),
            item: get("redemption"),
            gifted: sender.is_some() || about.get("gifted").is_some_and(is_true),
            sender,
            tier: get("tier"),
            level: number(about.get("level")),
            quantity: match items {
                Some(items) => Some(quantity(items)),
                None => counts.iter().find_map(|key| number(about.get(*key))),
            },
            ..Self::named(kind)
        })
    }

    /// A tip as `channel.tips` and `channel.tips.moderation` bring it, whether it is approved or not.
    pub fn tip(data: &Value) -> Option<Self> {
        let donation = data.get("donation")?;
        Some(Self {
            user: text(donation.pointer("/user/username")),
            amount: number(donation.get("amount")),
            currency: text(donation.get("currency")),
            message: text(donation.get("message")),
            ..Self::named("tip")
        })
    }

    fn follow(data: &Value) -> Self {
        let names = ["displayName", "username", "name"];
        Self { user: names.iter().find_map(|key| text(data.get(key))), ..Self::named("follow") }
    }

    fn redemption(data: &Value) -> Self {
        Self {
            user: text(data.pointer("/redeemer/username")),
            amount: number(data.pointer("/item/cost")),
            item: text(data.pointer("/item/name")),
            message: text(data.get("message")),
            ..Self::named("redemption")
        }
    }

    fn known(&self) -> Option<&'static Kind> {
        KINDS.iter().find(|known| known.word == self.kind)
    }

    /// What its amount counts.
    pub fn counts(&self) -> Counts {
        self.known().map_or(Counts::Unknown, |known| known.counts)
    }

    /// Whether the vendor's documents name the kind.
    pub fn is_known(&self) -> bool {
        self.known().is_some()
    }

    /// Whether somebody gave money, or what is bought with it, and how much is known. Subscriptions and
    /// memberships are not: their amount is months.
    pub fn is_paid(&self) -> bool {
        let bought = matches!(self.counts(), Counts::Money | Counts::Bought(_) | Counts::Unknown);
        bought && self.amount.is_some()
    }

    /// The name of what was given, where that is neither money nor nameless: `bits`, `KICKs`.
    pub fn unit(&self) -> Option<String> {
        match self.counts() {
            Counts::Bought(unit) => Some(unit.to_owned()),
            Counts::Unknown if self.currency.is_none() => Some(plainly(&self.kind)),
            _ => None,
        }
    }

    /// The kind, for people: `Super Chat`, `KICKs`; of one that is not known its own word (`mega kicks`
    /// for `megaKicks`).
    pub fn name(&self) -> Cow<'static, str> {
        self.known().map_or_else(|| plainly(&self.kind).into(), |known| known.name.into())
    }

    /// The kind in one or two small words, for a line: `super chat`; of one that is not known its own word.
    pub fn short(&self) -> &str {
        match self.known() {
            Some(known) if known.word == "subscriber" && self.gifted => "gift",
            Some(known) => known.short,
            None => &self.kind,
        }
    }

    /// How much of what, for people: `5.00 USD`, `500 bits`, `1 month`. Of a kind that is not known the
    /// number alone.
    pub fn how_much(&self) -> Option<String> {
        let amount = self.amount.as_ref()?;
        match (self.counts(), &self.currency) {
            // A currency says that it is money.
            (Counts::Money | Counts::Unknown, Some(currency)) => {
                Some(format!("{:.2} {currency}", amount.as_f64().unwrap_or_default()))
            }
            (Counts::Bought(unit) | Counts::Other(unit), _) if !unit.is_empty() => {
                let one = unit.strip_suffix('s').filter(|_| amount.as_f64() == Some(1.0));
                Some(format!("{} {}", plain(amount), one.unwrap_or(unit)))
            }
            _ => Some(plain(amount)),
        }
    }
}

/// A number as people write it: at most two places behind the point.
pub fn plain(number: &Value) -> String {
    match number.as_f64() {
        Some(float) if number.is_f64() => {
            let text = format!("{float:.2}");
            text.strip_suffix(".00").map_or(text.clone(), str::to_owned)
        }
        _ => number.to_string(),
    }
}

/// How many things were bought.
fn quantity(items: &[Value]) -> Value {
    let each = |item: &Value| number(item.get("quantity")).and_then(|n| n.as_u64()).unwrap_or(1);
    items.iter().map(each).fold(0_u64, u64::saturating_add).into()
}

/// A word of the vendor's as words: `hypetrainStart` becomes `hypetrain start`.
pub fn plainly(word: &str) -> String {
    let mut plain = String::with_capacity(word.len() + 4);
    let mut before = ' ';
    for letter in word.chars() {
        match letter {
            '-' | '_' => plain.push(' '),
            _ if letter.is_uppercase() && before.is_lowercase() => {
                plain.push(' ');
                plain.extend(letter.to_lowercase());
            }
            _ => plain.push(letter),
        }
        before = letter;
    }
    plain
}

/// A text that says something.
pub fn text(value: Option<&Value>) -> Option<String> {
    value.and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// A number, also where it was sent as text.
pub fn number(value: Option<&Value>) -> Option<Value> {
    match value? {
        number @ Value::Number(_) => Some(number.clone()),
        Value::String(text) => written(text),
        _ => None,
    }
}

/// A number as people write it: `5.50`, `5,50`, `1,234.50`, `$5`, `5 EUR`.
fn written(text: &str) -> Option<Value> {
    let text = text.trim();
    let parsed = |text: &str| serde_json::from_str(text).ok().filter(Value::is_number);
    if let Some(number) = parsed(text) {
        return Some(number);
    }
    let sign = |c: char| matches!(c, '-' | '+');
    // What stands around it is a currency.
    let around = |c: char| !c.is_ascii_digit() && !sign(c) && !matches!(c, '.' | ',');
    let text = text.trim_matches(around).trim_start_matches('+');
    if text.contains(around) {
        // A blank between thousands is part of it, anything else is not.
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        return if compact.contains(around) { None } else { written(&compact) };
    }
    let (dot, comma) = (text.rfind('.'), text.rfind(','));
    let (thousands, decimal) = match (dot, comma) {
        (Some(dot), Some(comma)) if comma > dot => ('.', ','),
        // Three digits behind the only comma are thousands: nobody tips a tenth of a cent.
        (None, Some(comma)) if text.len() - comma != 4 && text.matches(',').count() == 1 => {
            ('.', ',')
        }
        _ => (',', '.'),
    };
    let plain: String = text.chars().filter(|c| *c != thousands).collect();
    let plain = plain.replace(decimal, ".");
    let plain = plain.trim_end_matches('.');
    let plain = if plain.starts_with('.') { format!("0{plain}") } else { plain.to_owned() };
    let zeros = plain.trim_start_matches('0');
    let plain = if zeros.starts_with(|c: char| c.is_ascii_digit()) { zeros } else { &*plain };
    parsed(plain)
}

/// The vendor's words for what nobody did.
const MOCK: [&str; 6] = ["isMock", "mock", "isTest", "isEmulated", "isReplay", "isReplayed"];

/// True, in any spelling.
pub fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(truth) => *truth,
        Value::String(text) => text.eq_ignore_ascii_case("true") || text == "1",
        Value::Number(number) => number.as_f64().is_some_and(|number| number != 0.0),
        _ => false,
    }
}

/// Whether the vendor says that nobody did it.
pub fn is_mock(data: &Value) -> bool {
    let says = |data: &Value| MOCK.iter().any(|key| data.get(key).is_some_and(is_true));
    says(data) || data.get("data").is_some_and(says) || data.get("donation").is_some_and(says)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn info(kind: &str, data: &Value) -> ActivityInfo {
        ActivityInfo::of(ACTIVITIES, &json!({"type": kind, "data": data})).unwrap()
    }

    #[test]
    fn a_paid_activity_is_named_with_its_amount_and_user() {
        for (kind, data, paid, name, quantity) in [
            ("tip", json!({"amount": "5,50", "currency": "EUR"}), true, "Tip", "5.50 EUR"),
            ("tip", json!({"amount": 5}), true, "Tip", "5"),
            ("cheer", json!({"amount": 500}), true, "Cheer", "500 bits"),
            ("superchat", json!({"amount": 2, "currency": "JPY"}), true, "Super Chat", "2.00 JPY"),
            ("kicks", json!({"amount": 50}), true, "KICKs", "50 KICKs"),
            ("jewels", json!({"amount": 7}), true, "Jewels", "7 Jewels"),
            ("megaKicks", json!({"amount": "20"}), true, "mega kicks", "20"),
            ("gold-bar", json!({"amount": 3, "currency": "USD"}), true, "gold bar", "3.00 USD"),
            ("cheer", json!({"amount": 1}), true, "Cheer", "1 bit"),
            ("elixir", json!({"amount": 1}), true, "Elixir", "1 elixir"),
            ("raid", json!({"amount": 1}), false, "Raid", "1 viewer"),
            ("subscriber", json!({"amount": 7}), false, "Subscription", "7 months"),
            ("raid", json!({"amount": 45}), false, "Raid", "45 viewers"),
            ("redemption", json!({"amount": 900}), false, "Redemption", "900 points"),
            ("hypetrainEnd", json!({"amount": 900}), false, "Hype train end", "900"),
        ] {
            let mut data = data;
            data["username"] = "ann".into();
            let info = info(kind, &data);
            assert_eq!((info.is_paid(), &*info.name()), (paid, name), "{kind}");
            assert_eq!(info.how_much().as_deref(), Some(quantity), "{kind}");
            assert_eq!(info.user.as_deref(), Some("ann"));
            assert_eq!(info.kind, kind);
        }
        for kind in ["tip", "something new"] {
            let info = info(kind, &json!({"displayName": "Ann", "username": "ann"}));
            assert_eq!((info.is_paid(), info.how_much()), (false, None), "{kind}");
            assert_eq!(info.user.as_deref(), Some("Ann"));
        }
    }

    #[test]
    fn the_other_topics_tell_the_same() {
        let tip =
            json!({"donation": {"user": {"username": "ann"}, "amount": 5, "currency": "USD"}});
        let paid = ActivityInfo::of("channel.tips", &tip).unwrap();
        assert!(paid.is_paid() && paid.how_much().as_deref() == Some("5.00 USD"));
        let pending = json!({"donation": {"amount": 5}, "approved": "pending"});
        assert_eq!(ActivityInfo::of("channel.tips", &pending), None);
        let redeemed =
            json!({"redeemer": {"username": "ann"}, "item": {"name": "horn", "cost": 9}});
        let redeemed = ActivityInfo::of("channel.loyalty.redemptions", &redeemed).unwrap();
        assert_eq!((redeemed.item.as_deref(), redeemed.is_paid()), (Some("horn"), false));
        let follow = ActivityInfo::of("channel.follow", &json!({"name": "ann"})).unwrap();
        assert_eq!(follow.user.as_deref(), Some("ann"));
        for topic in ["channel.chat.message", "channel.tips.moderation", "relay.gap"] {
            assert_eq!(ActivityInfo::of(topic, &tip), None, "{topic}");
        }
        for data in [json!(null), json!([]), json!({}), json!({"type": 5}), json!("tip")] {
            assert_eq!(ActivityInfo::of(ACTIVITIES, &data), None, "{data}");
        }
    }

    #[test]
    fn no_kind_stands_twice() {
        let mut words: Vec<&str> = KINDS.iter().map(|known| known.word).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), KINDS.len());
    }

    #[test]
    fn an_amount_that_is_text_is_a_number() {
        for (text, expected) in [
            ("5", json!(5)),
            (" 5.50 ", json!(5.5)),
            ("5,50", json!(5.5)),
            ("1,234.50", json!(1234.5)),
            ("1.234,50", json!(1234.5)),
            ("1,000", json!(1000)),
            ("1,000,000", json!(1_000_000)),
            ("1 000", json!(1000)),
            ("$5.00", json!(5.0)),
            ("5.00 EUR", json!(5.0)),
            ("€ 5", json!(5)),
            ("+7", json!(7)),
            ("-7", json!(-7)),
            ("007", json!(7)),
            (".5", json!(0.5)),
            ("5.", json!(5)),
            ("1e3", json!(1000.0)),
        ] {
            assert_eq!(number(Some(&text.into())), Some(expected), "{text}");
        }
        for text in ["", "much", "5 or 6", "1-2", "--5", "0x10", "1.2.3", "NaN", "∞", ",", "."] {
            assert_eq!(number(Some(&text.into())), None, "{text}");
        }
    }
}
