//! What is known of a token, and whether it fits what is asked for with it.
//!
//! A JWT says of itself whose it is; of an OAuth2 access token the server says it. A token that was taken
//! while another platform's account was selected subscribes, and then brings nothing (vendor's FAQ): only
//! this comparison tells.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{
    rest::{
        is_channel_id,
        oauth::{self, Validated},
    },
    topics::CATALOGUE,
};
use crate::config::jwt;

/// The scope that covers all.
const OWNER: &str = "*";

/// The longest word of a token that is shown.
const WORD: usize = 100;

/// What is known of a token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenFacts {
    /// The channel that it belongs to.
    pub channel: Option<String>,
    /// The platform of that channel: `twitch`, `youtube`, …
    pub provider: Option<String>,
    /// What it allows, where that is said.
    pub scopes: Option<Vec<String>>,
}

impl TokenFacts {
    /// What a JWT says. Nothing for what is none.
    pub fn of_jwt(token: &str) -> Self {
        let claims: Map<String, Value> =
            jwt::claims(token).and_then(|claims| claims.as_object().cloned()).unwrap_or_default();
        let word = |name: &str| {
            let text = claims.get(name)?.as_str()?;
            let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
            (is_word && text.len() <= WORD).then(|| text.to_owned())
        };
        let scopes = oauth::scopes(&claims);
        Self { channel: word("channel"), provider: word("provider"), scopes }
    }

    pub fn of_oauth(said: Validated) -> Self {
        Self { channel: said.channel, provider: None, scopes: said.scopes }
    }

    /// What does not fit: the room that is asked for, or a topic that needs a scope which is not there.
    pub fn doubts<'t>(
        &self,
        room: Option<&str>,
        topics: impl IntoIterator<Item = &'t str>,
    ) -> Vec<String> {
        let mut doubts = Vec::new();
        if let (Some(own), Some(room)) = (&self.channel, room)
            && is_channel_id(own)
            && !own.eq_ignore_ascii_case(room)
        {
            let provider = self.provider.as_ref().map(|word| format!(" ({word})"));
            doubts.push(format!(
                "it belongs to channel {own}{}, and room {room} is asked for: that may be confirmed \
                 and bring nothing; take the token while the right platform's account is selected",
                provider.unwrap_or_default()
            ));
        }
        for (scope, topics) in self.missing(topics) {
            doubts.push(format!("it lacks the scope {scope} for {}", topics.join(", ")));
        }
        doubts
    }

    /// The scopes that it lacks, each with the topics that need it.
    fn missing<'t>(
        &self,
        topics: impl IntoIterator<Item = &'t str>,
    ) -> BTreeMap<&'static str, Vec<&'t str>> {
        let mut missing: BTreeMap<_, Vec<_>> = BTreeMap::new();
        let Some(scopes) = &self.scopes else { return missing };
        for topic in topics {
            let known = CATALOGUE.iter().find(|known| known.name == topic);
            let Some(needed) = known.and_then(|known| known.scope) else { continue };
            if !scopes.iter().any(|scope| scope == OWNER || scope == needed) {
                missing.entry(needed).or_default().push(topic);
            }
        }
        missing
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};

    use super::*;

    const ROOM: &str = "5b2e2007760aeb7729487dab";
    const OTHER: &str = "6b2e2007760aeb7729487dab";

    fn facts(claims: &str) -> TokenFacts {
        TokenFacts::of_jwt(&format!("e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims)))
    }

    #[test]
    fn a_token_of_another_channel_is_named_with_its_platform() {
        let token = facts(&format!(r#"{{"channel":"{OTHER}","provider":"youtube"}}"#));
        let doubts = token.doubts(Some(ROOM), ["channel.tips"]);
        let expected = format!("it belongs to channel {OTHER} (youtube), and room {ROOM} is asked");
        assert!(matches!(&*doubts, [doubt] if doubt.starts_with(&expected)), "{doubts:?}");
        for (token, room) in [
            (token.clone(), Some(OTHER)),
            (token.clone(), Some("6B2E2007760AEB7729487DAB")),
            (token, None),
            (facts(r#"{"channel":7,"provider":"a\u001bb"}"#), Some(ROOM)),
            (TokenFacts::of_jwt("opaque"), Some(ROOM)),
        ] {
            assert!(token.doubts(room, ["channel.tips"]).is_empty(), "{token:?}");
        }
        assert_eq!(facts(r#"{"provider":"a\u001bb"}"#).provider, None);
    }

    #[test]
    fn a_scope_that_is_missing_is_named_with_its_topics() {
        let of = |scopes: &[&str]| TokenFacts {
            scopes: Some(scopes.iter().map(|&scope| scope.to_owned()).collect()),
            ..TokenFacts::default()
        };
        let topics =
            ["channel.tips", "channel.session.update", "channel.session.reset", "channel.polls"];
        assert_eq!(
            of(&["tips:read"]).doubts(None, topics),
            ["it lacks the scope session:read for channel.session.update, channel.session.reset"]
        );
        assert!(of(&["*"]).doubts(None, topics).is_empty());
        assert_eq!(of(&[]).doubts(None, topics).len(), 2);
        assert!(TokenFacts::default().doubts(None, topics).is_empty(), "nothing is known");
        assert_eq!(facts(r#"{"scope":"a b"}"#).scopes.unwrap(), ["a", "b"]);
    }
}
