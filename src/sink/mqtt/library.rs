//! The MQTT client library: the only file of the program that names it.
//!
//! It is `rumqttc-v4-next` and `rumqttc-v5-next`, the maintained line of rumqttc, pinned to one version.
//!
//! *Why not rumqttc itself:* version 0.25 cannot say which publication an acknowledgement belongs to, drops
//! what is pending without a word when the broker has lost the session, and is bound to a `rustls-webpki` with
//! open advisories.
//!
//! *What the relay needs of a replacement:* a handle for each publication that resolves with the reason code
//! of its acknowledgement and fails when the session is lost; no reconnect of its own that sends again; limits
//! for what is in flight and for the size of packets; rustls with ring; a web socket as transport. Candidates
//! are a release of rumqttc that has the first two, and `mqtt5`, whose interface still changes every few weeks.
//!
//! *The watch:* `.github/workflows/upstream.yml` asks once a week whether there is a newer version of either
//! line, and whether an advisory names one that is used. A new version is taken by hand: each so far has
//! changed the interface. Then `cargo test --test it mqtt` shows what has changed.

pub(super) use rumqttc_v4 as v4;
pub(super) use rumqttc_v5 as v5;
