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
    /// Its event types: what an automation can tell apart.
    pub types: &'static [&'static str],
    /// Whether most channels have it: its entity is shown without somebody asking for it.
    pub common: bool,
    /// The topic that says it where activities are not subscribed; empty: none does.
    pub topic: &'static str,
}

/// All kinds. Names are part of what users write into automations: they stay.
pub const KINDS: &[Kind] = &[
    Kind {
        name: "follow",
        label: "Follow",
        icon: "mdi:account-heart",
        types: &["follow"],
        common: true,
        topic: "channel.follow",
    },
    Kind {
        name: "subscription",
        label: "Subscription",
        icon: "mdi:star",
        types: &["subscription", "gift", "community_gift", "membership", "supporter"],
        common: true,
        topic: "",
    },
    Kind {
        name: "tip",
        label: "Tip",
        icon: "mdi:cash",
        types: &["tip"],
        common: true,
        topic: "channel.tips",
    },
    Kind {
        name: "cheer",
        label: "Cheer",
        icon: "mdi:diamond-stone",
        types: &["cheer", "stars", "elixir"],
        common: true,
        topic: "",
    },
    Kind {
        name: "kicks",
        label: "KICKs",
        icon: "mdi:alpha-k-circle",
        types: &["kicks"],
        common: false,
        topic: "",
    },
    Kind {
        name: "jewels",
        label: "Jewels",
        icon: "mdi:diamond",
        types: &["jewels"],
        common: false,
        topic: "",
    },
    Kind {
        name: "superchat",
        label: "Super Chat",
        icon: "mdi:chat-plus",
        types: &["superchat"],
        common: true,
        topic: "",
    },
    Kind {
        name: "raid",
        label: "Raid",
        icon: "mdi:account-group",
        types: &["raid", "host"],
        common: true,
        topic: "",
    },
    Kind {
        name: "redemption",
        label: "Redemption",
        icon: "mdi:gift",
        types: &["channel_points", "store"],
        common: true,
        topic: "channel.loyalty.redemptions",
    },
    Kind {
        name: "merch",
        label: "Merch",
        icon: "mdi:tshirt-crew",
        types: &["merch", "purchase"],
        common: false,
        topic: "",
    },
    Kind {
        name: "charity",
        label: "Charity donation",
        icon: "mdi:hand-heart",
        types: &["charity"],
        common: false,
        topic: "",
    },
    Kind {
        name: "hype_train",
        label: "Hype train",
        icon: "mdi:train",
        types: &["start", "progress", "end"],
        common: false,
        topic: "",
    },
    Kind {
        name: PAID,
        label: "Paid",
        icon: "mdi:cash-plus",
        types: &[
            "tip",
            "cheer",
            "stars",
            "elixir",
            "kicks",
            "jewels",
            "superchat",
            "merch",
            "purchase",
            "charity",
            "other",
        ],
        common: true,
        topic: "channel.tips",
    },
    Kind {
        name: "other",
        label: "Other activity",
        icon: "mdi:bell",
        types: &["activity"],
        common: false,
        topic: "",
    },
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
