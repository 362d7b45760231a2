use serde_json::json;

use super::*;
use crate::base::event::own;

const NOW: u64 = 1_708_008_762_000;

fn received(topic: &str, data: &Value) -> Event {
    own(topic, &"main".into(), &"r".into(), data, NOW)
}

fn rendered(topic: &str, data: &Value, activities: bool) -> Option<(&'static str, Value)> {
    let mut all = all_rendered(topic, data, activities);
    assert!(all.len() < 2 || all.len() == 2 && all[1].0 == PAID, "{all:?}");
    (!all.is_empty()).then(|| all.swap_remove(0))
}

/// In its own kind, and among what was paid.
fn all_rendered(topic: &str, data: &Value, activities: bool) -> Vec<(&'static str, Value)> {
    let event = received(topic, data);
    let all = HaEvent::of(&event, event.data(), activities, 1_540);
    all.into_iter()
        .map(|one| (&*one.kind.clone().into_owned().leak(), serde_json::to_value(one).unwrap()))
        .collect()
}

fn activity(kind: &str, data: &Value) -> Value {
    json!({"type": kind, "provider": "twitch", "channel": "c", "data": data,
           "_id": "a1", "createdAt": "2024-02-15T14:52:41.608Z", "activityId": "a1"})
}

/// The attributes beside those that each has.
fn only(mut value: Value) -> Value {
    let object = value.as_object_mut().unwrap();
    let summary = object.remove("summary").unwrap();
    assert!(summary.as_str().unwrap().contains(": Ann"), "{summary}");
    for (key, expected) in [
        ("id", json!("a1")),
        ("age", json!(1.5)),
        ("backfilled", json!(false)),
        ("provider", json!("twitch")),
        ("occurred_at", json!("2024-02-15T14:52:41.608Z")),
    ] {
        assert_eq!(object.remove(key), Some(expected), "{key}");
    }
    value
}

/// An activity's word and data, and what is rendered of it beside name and message: its kind, its
/// event type, and more.
fn table() -> Vec<(&'static str, Value, &'static str, &'static str, Value)> {
    vec![
        ("follow", json!({}), "follow", "follow", json!({})),
        (
            "tip",
            json!({"amount": 4.2, "currency": "USD"}),
            "tip",
            "tip",
            json!({"amount": 4.2, "currency": "USD"}),
        ),
        ("tip", json!({"amount": "5.50"}), "tip", "tip", json!({"amount": 5.5})),
        ("cheer", json!({"amount": 100}), "cheer", "cheer", json!({"amount": 100})),
        (
            "subscriber",
            json!({"amount": 7, "tier": "prime"}),
            "subscription",
            "subscription",
            json!({"months": 7, "tier": "prime"}),
        ),
        (
            "subscriber",
            json!({"amount": 1, "gifted": true, "sender": "Bob"}),
            "subscription",
            "gift",
            json!({"months": 1, "tier": "1000", "sender": "Bob", "gifted": true}),
        ),
        (
            "communityGiftPurchase",
            json!({"amount": 20}),
            "subscription",
            "community_gift",
            json!({"quantity": 20, "tier": "1000"}),
        ),
        (
            "sponsor",
            json!({"amount": 3}),
            "subscription",
            "membership",
            json!({"months": 3, "tier": "1000"}),
        ),
        ("raid", json!({"amount": 45}), "raid", "raid", json!({"amount": 45})),
        ("host", json!({"amount": 4}), "raid", "host", json!({"amount": 4})),
        (
            "channelPointsRedemption",
            json!({"amount": 500, "redemption": "Hydrate!"}),
            "redemption",
            "channel_points",
            json!({"amount": 500, "item": "Hydrate!"}),
        ),
        (
            "merch",
            json!({"amount": 30, "items": [{"quantity": 2}, {"name": "mug"}]}),
            "merch",
            "merch",
            json!({"amount": 30, "quantity": 3}),
        ),
        (
            "superchat",
            json!({"amount": 5, "currency": "EUR"}),
            "superchat",
            "superchat",
            json!({"amount": 5, "currency": "EUR"}),
        ),
        (
            "hypetrainProgress",
            json!({"level": 2, "amount": 1500}),
            "hype_train",
            "progress",
            json!({"level": 2, "amount": 1500}),
        ),
        (
            "something new",
            json!({}),
            "other",
            "activity",
            json!({"activity": "something new", "tier": "1000"}),
        ),
    ]
}

fn joined(mut one: Value, other: Value) -> Value {
    if let (Value::Object(one), Value::Object(other)) = (&mut one, other) {
        one.extend(other);
    }
    one
}

#[test]
fn each_activity_has_its_kind_and_its_attributes() {
    for (word, data, kind, event_type, more) in table() {
        let ann = json!({"username": "ann", "displayName": "Ann", "providerId": "1",
            "message": "hi", "avatar": "https://x.invalid/a.png", "tier": "1000"});
        let (found, told) =
            rendered(ACTIVITIES, &activity(word, &joined(ann, data)), true).unwrap();
        let expected = json!({"event_type": event_type, "name": "Ann", "message": "hi"});
        assert_eq!((found, only(told)), (kind, joined(expected, more)), "{word}");
    }
}

/// Every activity that the simulation makes, in the documentation's shape, is of some kind.
#[test]
fn the_documented_shapes_are_rendered() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("sim/messages");
    let mut kinds = BTreeSet::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        let message: Value = serde_json::from_str(&text).unwrap();
        let topic = message["topic"].as_str().unwrap_or_default();
        let told = rendered(topic, &message["data"], topic == ACTIVITIES);
        let expected = KINDS.iter().any(|kind| kind.topic == topic) || topic == ACTIVITIES;
        assert_eq!(told.is_some(), expected && !topic.is_empty(), "{topic}");
        kinds.extend(told.filter(|_| topic == ACTIVITIES).map(|(kind, _)| kind));
    }
    let expected = [
        "cheer", "follow", "hype_train", "merch", "raid", "redemption", "subscription",
        "superchat", "tip",
    ];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
}

#[test]
fn a_tip_that_is_also_an_activity_is_rendered_once() {
    let tip: Value = serde_json::from_str(
        r#"{"donation":{"user":{"username":"Styler","geo":"ZZ","email":"a@b.c"},"message":"",
        "amount":4.2,"currency":"USD"},"_id":"67b5","approved":"allowed","provider":"paypal",
        "createdAt":"2025-02-19T15:07:09.302Z","transactionId":"2YH"}"#,
    )
    .unwrap();
    assert_eq!(rendered("channel.tips", &tip, true), None);
    let (kind, attributes) = rendered("channel.tips", &tip, false).unwrap();
    let expected = json!({
        "event_type": "tip", "name": "Styler", "message": "", "amount": 4.2, "currency": "USD",
        "provider": "paypal", "occurred_at": "2025-02-19T15:07:09.302Z", "age": 1.5,
        "id": "67b5", "backfilled": false, "summary": "tip: Styler, 4.20 USD",
    });
    assert_eq!((kind, attributes), ("tip", expected));
    let mut pending = tip;
    pending["approved"] = "pending".into();
    assert_eq!(rendered("channel.tips", &pending, false), None);
    let redeemed = json!({"_id": "r", "redeemer": {"username": "Ann"},
                          "item": {"name": "Foghorn", "cost": 900}});
    let (kind, attributes) = rendered("channel.loyalty.redemptions", &redeemed, false).unwrap();
    assert_eq!(
        (kind, &attributes["item"], &attributes["amount"]),
        ("redemption", &json!("Foghorn"), &json!(900))
    );
    for topic in ["channel.tips.moderation", "channel.chat.message", "relay.gap"] {
        assert_eq!(rendered(topic, &activity("tip", &json!({})), false), None, "{topic}");
    }
}

#[test]
fn every_event_type_is_announced_by_its_kind() {
    for word in [
        "event", "follow", "tip", "communityGiftPurchase", "channelPointsRedemption", "sponsor",
        "superchat", "host", "raid", "subscriber", "cheer", "cheerPurchase",
        "charityCampaignDonation", "redemption", "merch", "fan", "supporter", "follower", "stars",
        "share", "videolike", "elixir", "purchase", "hypetrainStart", "hypetrainProgress",
        "hypetrainEnd", "giveaway", "sponsorship", "sponsorshipPassive",
    ] {
        for gifted in [false, true] {
            let (name, event_type) = of_activity(word, gifted);
            let kind = KINDS.iter().find(|kind| kind.name == name).unwrap();
            assert!(kind.types.contains(&event_type), "{word}");
        }
    }
}

#[test]
fn a_mock_is_marked_as_a_test() {
    let tip = json!({"username": "ann", "amount": 500});
    for (key, value, test) in [
        ("isMock", json!(true), true),
        ("isMock", json!("true"), true),
        ("isMock", json!(1), true),
        ("isTest", json!(true), true),
        ("isMock", json!(false), false),
        ("isMock", json!("false"), false),
        ("isMock", json!(null), false),
    ] {
        let mut outside = activity("tip", &tip);
        outside[key] = value.clone();
        let mut inside = tip.clone();
        inside[key] = value.clone();
        for data in [outside, activity("tip", &inside)] {
            let (_, attributes) = rendered(ACTIVITIES, &data, true).unwrap();
            assert_eq!(attributes.get("test").is_some(), test, "{key} {value}");
        }
    }
    let tip = json!({"donation": {"amount": 5}, "isMock": true});
    let (_, attributes) = rendered("channel.tips", &tip, false).unwrap();
    assert_eq!(attributes["test"], true);
}

#[test]
fn the_gifts_of_one_gift_bomb_have_one_group() {
    let mut bomb = activity("communityGiftPurchase", &json!({"amount": "20"}));
    let mut gift = activity("subscriber", &json!({"gifted": true, "sender": "B", "count": 20}));
    for data in [&mut bomb, &mut gift] {
        data["activityGroup"] = "g1".into();
        data["flagged"] = true.into();
        let (_, attributes) = rendered(ACTIVITIES, data, true).unwrap();
        assert_eq!(attributes["group"], "g1");
        // An automation that flashes once for a bomb leaves out its single gifts.
        let single = data["type"] == "subscriber";
        assert_eq!(attributes.get("gifted").is_some(), single);
        assert_eq!(attributes.get("bundled").is_some(), single);
        assert_eq!((&attributes["quantity"], &attributes["flagged"]), (&json!(20), &json!(true)));
    }
    let (_, attributes) = rendered(ACTIVITIES, &activity("tip", &json!({})), true).unwrap();
    assert!(
        attributes.get("group").is_none() && attributes.get("flagged").is_none(),
        "{attributes}"
    );
}

#[test]
fn an_unknown_activity_has_its_amount() {
    let data = activity("megakicks", &json!({"username": "ann", "amount": "50"}));
    let (kind, attributes) = rendered(ACTIVITIES, &data, true).unwrap();
    assert_eq!((kind, &attributes["event_type"]), ("megakicks", &json!("megakicks")));
    assert_eq!((&attributes["amount"], &attributes["name"]), (&json!(50), &json!("ann")));
    // What cannot be a kind of its own: a word that is one of ours, or no word, or without an amount.
    for word in ["paid", "hype_train", "mega kicks", "a/b", "#", "ä", &"x".repeat(41)] {
        let data = activity(word, &json!({"username": "ann", "amount": 50}));
        let (kind, attributes) = rendered(ACTIVITIES, &data, true).unwrap();
        assert_eq!((kind, &attributes["activity"]), ("other", &json!(word)));
    }
    let (kind, _) = rendered(ACTIVITIES, &activity("megakicks", &json!({})), true).unwrap();
    assert_eq!(kind, "other");
    for kind in ["kicks", "jewels"] {
        let (found, attributes) = rendered(ACTIVITIES, &activity(kind, &json!({})), true).unwrap();
        assert_eq!((found, &attributes["event_type"]), (kind, &json!(kind)));
    }
}

#[test]
fn what_was_paid_is_rendered_once_more_whatever_it_is() {
    let types = KINDS.iter().find(|kind| kind.name == PAID).unwrap().types;
    for (word, data, event_type, unit) in [
        ("tip", json!({"amount": 5, "currency": "USD"}), "tip", None),
        ("cheer", json!({"amount": 5}), "cheer", Some("bits")),
        ("kicks", json!({"amount": 5}), "kicks", Some("KICKs")),
        ("jewels", json!({"amount": 5}), "jewels", Some("Jewels")),
        ("charityCampaignDonation", json!({"amount": 5, "currency": "USD"}), "charity", None),
        ("megaKicks", json!({"amount": 5}), "other", Some("mega kicks")),
        ("goldBar", json!({"amount": 5, "currency": "USD"}), "other", None),
    ] {
        let mut data = data;
        data["username"] = "ann".into();
        let all = all_rendered(ACTIVITIES, &activity(word, &data), true);
        let [_, (kind, paid)] = &all[..] else { panic!("{word}: {all:?}") };
        assert_eq!(
            (*kind, &paid["event_type"], &paid["activity"]),
            (PAID, &json!(event_type), &json!(word))
        );
        assert_eq!((&paid["amount"], &paid["name"]), (&json!(5), &json!("ann")), "{word}");
        assert_eq!(paid.get("unit").and_then(Value::as_str), unit, "{word}");
        assert!(types.contains(&event_type), "{word}");
    }
    for (word, data) in [
        ("subscriber", json!({"amount": 5})),
        ("raid", json!({"amount": 5})),
        ("channelPointsRedemption", json!({"amount": 5})),
        ("hypetrainEnd", json!({"amount": 5})),
        ("tip", json!({})),
        ("megaKicks", json!({"amount": null})),
    ] {
        assert_eq!(all_rendered(ACTIVITIES, &activity(word, &data), true).len(), 1, "{word}");
    }
    let tip = json!({"donation": {"user": {"username": "ann"}, "amount": 5}});
    let kinds = |activities| -> Vec<&str> {
        let all = all_rendered("channel.tips", &tip, activities);
        all.into_iter().map(|(kind, _)| kind).collect()
    };
    assert_eq!((kinds(false), kinds(true)), (vec!["tip", PAID], vec![]));
}

#[test]
fn an_event_says_in_one_line_what_happened() {
    let summaries = |origin, data: &Value| -> Vec<String> {
        let event = Event { origin, ..received(ACTIVITIES, data) };
        let all = HaEvent::of(&event, event.data(), true, 0);
        all.into_iter().map(|one| one.summary).collect()
    };
    let tip = json!({"username": "ann", "amount": 5, "currency": "EUR", "message": "hi\u{1b}[2J"});
    let tip = activity("tip", &tip);
    let told = "tip: ann, 5.00 EUR, 'hi\\u{1b}[2J'";
    assert_eq!(summaries(Origin::Live, &tip), [told, told], "of its kind, and of what was paid");
    assert_eq!(summaries(Origin::Backfilled, &tip)[0], format!("{told} (backfilled)"));
    let raid = activity("raid", &json!({"username": "ann", "amount": 1}));
    assert_eq!(summaries(Origin::Test, &raid), ["raid: ann, 1 viewer (test)"]);
    // It fits into a state.
    let long = "ü".repeat(300);
    let long = json!({"username": long, "redemption": long, "message": long});
    let long = summaries(Origin::Live, &activity("redemption", &long)).remove(0);
    assert_eq!(long.chars().count(), 255);
}

#[test]
fn data_without_a_type_is_not_rendered() {
    for data in [json!(null), json!([]), json!({}), json!({"type": 5}), json!("tip")] {
        assert_eq!(rendered(ACTIVITIES, &data, true), None, "{data}");
    }
    // Little is needed: it happened all the same.
    let (kind, attributes) = rendered(ACTIVITIES, &json!({"type": "tip"}), true).unwrap();
    assert_eq!((kind, &attributes["name"]), ("tip", &json!("")));
    assert_eq!(attributes["occurred_at"], "2024-02-15T14:52:42Z");
}

#[test]
fn backfilled_test_and_replayed_events_are_marked() {
    let data = activity("tip", &json!({"username": "ann", "amount": 5, "tier": "3000"}));
    for (origin, backfilled, test, replayed) in [
        (Origin::Backfilled, true, false, false),
        (Origin::Test, false, true, false),
        (Origin::Replayed, false, false, true),
    ] {
        let event = Event { origin, ..received(ACTIVITIES, &data) };
        let told = HaEvent::of(&event, event.data(), true, 0).swap_remove(0);
        assert_eq!((told.backfilled, told.test, told.replayed), (backfilled, test, replayed));
        assert_eq!((&*told.name, told.tier), ("ann", None));
    }
}
