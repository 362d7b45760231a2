//! The kinds of event entity that Home Assistant has of a channel, and which activity is of which kind.

/// The kind in which everything that was paid is published once more, whatever it is.
pub(super) const PAID: &str = "paid";

/// A kind of event: one event entity of each channel.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    /// The last part of its topic, and of its entity's id.
    pub name: &'static str,
    pub label: &'static str,
    pub icon: &'static str,
    /// The topic that says it where activities are not subscribed; empty: none does.
    pub topic: &'static str,
    /// Whether most channels have it: its entity is shown without somebody asking for it.
    pub common: bool,
    /// Its event types: what an automation can tell apart.
    pub types: &'static [&'static str],
}

const fn kind(
    name: &'static str,
    label: &'static str,
    icon: &'static str,
    topic: &'static str,
    common: bool,
    types: &'static [&'static str],
) -> Kind {
    Kind { name, label, icon, topic, common, types }
}

/// All kinds: name, label, icon, topic, whether it is common, event types. Names are part of what users write
/// into automations: they stay.
pub const KINDS: &[Kind] = &[
    kind("follow", "Follow", "mdi:account-heart", "channel.follow", true, &["follow"]),
    kind(
        "subscription",
        "Subscription",
        "mdi:star",
        "",
        true,
        &["subscription", "gift", "community_gift", "membership", "supporter"],
    ),
    kind("tip", "Tip", "mdi:cash", "channel.tips", true, &["tip"]),
    kind("cheer", "Cheer", "mdi:diamond-stone", "", true, &["cheer", "stars", "elixir"]),
    kind("kicks", "KICKs", "mdi:alpha-k-circle", "", false, &["kicks"]),
    kind("jewels", "Jewels", "mdi:diamond", "", false, &["jewels"]),
    kind("superchat", "Super Chat", "mdi:chat-plus", "", true, &["superchat"]),
    kind("raid", "Raid", "mdi:account-group", "", true, &["raid", "host"]),
    kind(
        "redemption",
        "Redemption",
        "mdi:gift",
        "channel.loyalty.redemptions",
        true,
        &["channel_points", "store"],
    ),
    kind("merch", "Merch", "mdi:tshirt-crew", "", false, &["merch", "purchase"]),
    kind("charity", "Charity donation", "mdi:hand-heart", "", false, &["charity"]),
    kind("hype_train", "Hype train", "mdi:train", "", false, &["start", "progress", "end"]),
    kind(
        PAID,
        "Paid",
        "mdi:cash-plus",
        "channel.tips",
        true,
        &[
            "tip", "cheer", "stars", "elixir", "kicks", "jewels", "superchat", "merch", "purchase",
            "charity", "other",
        ],
    ),
    kind("other", "Other activity", "mdi:bell", "", false, &["activity"]),
];

/// The kind and the event type of an activity. The words are those of the protocol, see
/// `channel.activities`; one that is new is an activity of the kind `other`.
pub(super) fn of_activity(word: &str, gifted: bool) -> (&'static str, &'static str) {
    match word {
        "follow" | "follower" => ("follow", "follow"),
        "subscriber" if gifted => ("subscription", "gift"),
        "subscriber" => ("subscription", "subscription"),
        "communityGiftPurchase" => ("subscription", "community_gift"),
        "sponsor" => ("subscription", "membership"),
        "fan" | "supporter" => ("subscription", "supporter"),
        "tip" => ("tip", "tip"),
        "cheer" | "cheerPurchase" => ("cheer", "cheer"),
        "stars" => ("cheer", "stars"),
        "elixir" => ("cheer", "elixir"),
        "kicks" => ("kicks", "kicks"),
        "jewels" => ("jewels", "jewels"),
        "superchat" => ("superchat", "superchat"),
        "raid" => ("raid", "raid"),
        "host" => ("raid", "host"),
        "channelPointsRedemption" => ("redemption", "channel_points"),
        "redemption" => ("redemption", "store"),
        "merch" => ("merch", "merch"),
        "purchase" => ("merch", "purchase"),
        "charityCampaignDonation" => ("charity", "charity"),
        "hypetrainStart" => ("hype_train", "start"),
        "hypetrainProgress" => ("hype_train", "progress"),
        "hypetrainEnd" => ("hype_train", "end"),
        _ => ("other", "activity"),
    }
}
