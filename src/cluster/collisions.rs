//! Names that a cluster and a `nats` sink would both use at the same servers: what one of them deletes or makes,
//! the other has lost.
//!
//! By default there are two: the bucket `astro_state`, and a stream that the relay makes for a sink takes `astro.>`,
//! and of a subject only one stream can be made. Whether both have the same account at the servers is not known here.

use super::connection::{nats_settings, streams};
use crate::{
    config::{self, SinkConfig},
    sink::nats::{
        settings::Settings,
        stream::{Create, meets},
    },
};

/// What of a `nats` sink is the cluster's, too: the key, and what is wrong.
pub(crate) fn collisions(
    cluster: &config::Cluster,
    sink: &SinkConfig,
) -> Vec<(&'static str, String)> {
    // What is wrong with the settings themselves is reported already.
    let Ok(settings) = serde_json::from_value::<Settings>(sink.settings.clone()) else {
        return Vec::new();
    };
    if !has_same_server(cluster, &settings) {
        return Vec::new();
    }
    let has = |name: &str| streams(cluster).any(|stream| stream.name == name);
    let mut found = Vec::new();
    if sink.state && has(&format!("KV_{}", settings.state_bucket)) {
        let why = "the cluster has a bucket of this name at the same server: name another";
        found.push(("state_bucket", why.to_owned()));
    }
    if settings.jetstream && has(&settings.stream) {
        let why = "the cluster has a stream of this name at the same server: name another";
        found.push(("stream", why.to_owned()));
    }
    let makes = settings.jetstream && !matches!(settings.create_stream, Create::Plain(false));
    let pattern = settings.pattern();
    let mut taken = streams(cluster).flat_map(|stream| stream.subjects);
    if let Some(subject) = taken.find(|subject| makes && meets(subject, &pattern)) {
        let why = format!(
            "the sink's stream would take {pattern}, and the cluster's takes {subject} at the same server: \
             only one of them can be made in one account. Give `subject` another first word, or set \
             cluster.name"
        );
        found.push(("subject", why));
    }
    found
}

fn has_same_server(cluster: &config::Cluster, settings: &Settings) -> bool {
    let (Ok((_, ours)), Ok(theirs)) = (nats_settings(cluster), settings.servers()) else {
        return false;
    };
    ours.iter().any(|our| {
        theirs.iter().any(|their| (our.host(), our.port()) == (their.host(), their.port()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn keys(cluster: &str, settings: Value) -> Vec<&'static str> {
        let cluster = json!({ "url": "nats://a,nats://b:4222", "name": cluster });
        let cluster: config::Cluster = serde_json::from_value(cluster).unwrap();
        let sink = json!({ "type": "nats", "state": true });
        let mut sink: SinkConfig = serde_json::from_value(sink).unwrap();
        sink.settings = settings;
        collisions(&cluster, &sink).into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn a_bucket_that_the_cluster_has_is_found() {
        assert_eq!(keys("astro", json!({ "url": "nats://b" })), ["state_bucket"], "by default");
        for bucket in ["astro_state", "astro_lease"] {
            let settings = json!({ "url": "nats://b", "state_bucket": bucket });
            assert_eq!(keys("astro", settings.clone()), ["state_bucket"], "{bucket}");
            assert_eq!(keys("other", settings), [""; 0], "{bucket}");
        }
    }

    #[test]
    fn a_stream_that_would_take_the_log_is_found() {
        let made = json!({
            "url": "nats://b", "jetstream": true, "create_stream": true, "state_bucket": "own",
        });
        assert_eq!(keys("astro", made.clone()), ["subject"]);
        assert_eq!(keys("other", made.clone()), [""; 0]);
        let with = |key: &str, value: Value| {
            let mut settings = made.clone();
            settings[key] = value;
            keys("astro", settings)
        };
        assert_eq!(with("create_stream", json!({ "replicas": 3 })), ["subject"]);
        // That stream may take other subjects.
        assert_eq!(with("create_stream", json!(false)), [""; 0]);
        assert_eq!(with("subject", json!("events.{{ topic }}")), [""; 0]);
        assert_eq!(with("url", json!("nats://c")), [""; 0], "another server");
        assert_eq!(with("url", json!("nats://b:4223")), [""; 0], "another server");
        assert_eq!(with("stream", json!("astro_log")), ["stream", "subject"]);
    }
}
