//! The OAuth2 server beside the REST API: it refreshes an access token, and says what one is good for.
//!
//! A refresh is one attempt: the server may replace the refresh token with it, so whoever asks decides
//! whether and when it is made again. What is read of an answer has limits, and nothing of it is ever
//! shown: it is a secret.

use std::time::Duration;

use reqwest::{
    Method,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::{Map, Value};
use url::{Url, form_urlencoded};

use super::{
    Rest, RestError,
    call::{Call, authorization},
    is_channel_id,
};
use crate::config::{Secret, TokenType};

/// How long an access token lives (documents of September 2026): where the server does not say.
pub const LIFETIME: Duration = Duration::from_hours(7 * 24);

/// The longest lifetime that is believed.
const LONGEST_LIFETIME: Duration = Duration::from_hours(366 * 24);

/// The largest answer that is read: it has two tokens and a few words.
const LARGEST: usize = 64 * 1024;

/// The longest token that is taken. One that is longer fits no header.
const LONGEST_TOKEN: usize = 8 * 1024;

/// How long one request may take, at most.
const REQUEST: Duration = Duration::from_secs(15);

/// With what an access token is refreshed.
#[derive(Debug, Clone)]
pub struct RefreshGrant {
    pub client_id: String,
    pub client_secret: Secret,
    pub refresh_token: Secret,
}

/// What a refresh brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    pub access_token: Secret,
    /// The refresh token that counts from now on; `None`: the one that was used goes on.
    pub refresh_token: Option<Secret>,
    pub lifetime: Duration,
    pub scopes: Option<Vec<String>>,
}

/// What the server says of an access token.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validated {
    pub channel: Option<String>,
    /// How long it can still be used.
    pub left: Option<Duration>,
    pub scopes: Option<Vec<String>>,
}

impl Rest {
    /// Exchanges a refresh token for a new access token (RFC 6749, section 6).
    pub async fn refresh(&self, grant: &RefreshGrant) -> Result<Granted, RestError> {
        let body = form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("client_id", &grant.client_id)
            .append_pair("client_secret", grant.client_secret.expose())
            .append_pair("refresh_token", grant.refresh_token.expose())
            .finish();
        let secrets = [&grant.client_secret, &grant.refresh_token];
        let call = self.token_call(&secrets, true);
        let request = self
            .client()
            .await?
            .request(Method::POST, self.oauth("/oauth2/token")?)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(body);
        granted(&call.attempt(request).await?)
    }

    /// Asks what an access token is good for. No document of the vendor's has this call; its public clients
    /// make it. So nothing depends on the answer.
    pub async fn validate(&self, token: &Secret) -> Result<Validated, RestError> {
        let authorization = authorization(token, TokenType::Oauth2)?;
        let secrets = [token];
        let call = self.token_call(&secrets, false);
        let request = self
            .client()
            .await?
            .request(Method::GET, self.oauth("/oauth2/validate")?)
            .header(AUTHORIZATION, authorization);
        Ok(validated(&object(&call.attempt(request).await?)?))
    }

    fn token_call<'a>(&self, secrets: &'a [&'a Secret], change: bool) -> Call<'a> {
        Call { secrets, change, deadline: REQUEST.min(self.deadline), largest: LARGEST }
    }

    /// An address of the OAuth2 server: on the host of the REST API.
    fn oauth(&self, path: &str) -> Result<Url, RestError> {
        let base = Url::parse(&self.base).map_err(|error| RestError::Client(error.into()))?;
        base.join(path).map_err(|error| RestError::Client(error.into()))
    }
}

fn object(body: &[u8]) -> Result<Map<String, Value>, RestError> {
    // The parser's words would show a part of it.
    let read: Option<Map<String, Value>> = serde_json::from_slice(body).ok();
    read.ok_or_else(|| RestError::Unreadable("it is no JSON object".into()))
}

fn granted(body: &[u8]) -> Result<Granted, RestError> {
    let fields = object(body)?;
    let token = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if is_token(text) => Ok(Some(Secret::new(text))),
        Some(_) => Err(RestError::Unreadable(format!("its {name} is none").into())),
    };
    let access_token = token("access_token")?
        .ok_or_else(|| RestError::Unreadable("it has no access_token".into()))?;
    let lifetime = seconds(fields.get("expires_in")).filter(|lifetime| !lifetime.is_zero());
    Ok(Granted {
        access_token,
        refresh_token: token("refresh_token")?,
        lifetime: lifetime.unwrap_or(LIFETIME).min(LONGEST_LIFETIME),
        scopes: scopes(&fields),
    })
}

/// Whether a text can be a token: it has to fit into a line of a file, and into a header.
fn is_token(text: &str) -> bool {
    (1..=LONGEST_TOKEN).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn validated(fields: &Map<String, Value>) -> Validated {
    let channel = fields.get("channel_id").and_then(Value::as_str);
    Validated {
        channel: channel.filter(|channel| is_channel_id(channel)).map(str::to_owned),
        left: seconds(fields.get("expires_in")).map(|left| left.min(LONGEST_LIFETIME)),
        scopes: scopes(fields),
    }
}

fn seconds(value: Option<&Value>) -> Option<Duration> {
    let seconds = match value? {
        Value::Number(number) => number.as_f64()?,
        Value::String(text) => text.trim().parse().ok()?,
        _ => return None,
    };
    Duration::try_from_secs_f64(seconds).ok()
}

/// The scopes, as a list or as words with blanks between.
pub(crate) fn scopes(fields: &Map<String, Value>) -> Option<Vec<String>> {
    let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    ["scopes", "scope"].iter().find_map(|name| match fields.get(*name)? {
        Value::String(text) => Some(words(text)),
        Value::Array(list) => list.iter().map(|one| one.as_str().map(str::to_owned)).collect(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_in_every_documented_form_and_nothing_else() {
        let read = |body: &str| granted(body.as_bytes());
        let whole = r#"{"access_token":"a","refresh_token":"r","expires_in":604800,"scope":"x y"}"#;
        let expected = Granted {
            access_token: Secret::new("a"),
            refresh_token: Some(Secret::new("r")),
            lifetime: LIFETIME,
            scopes: Some(vec!["x".into(), "y".into()]),
        };
        assert_eq!(read(whole).unwrap(), expected);
        let lifetime = |text: &str| {
            read(&format!(r#"{{"access_token":"a","expires_in":{text}}}"#)).unwrap().lifetime
        };
        for (text, expected) in [
            ("60", Duration::from_mins(1)),
            ("\"60\"", Duration::from_mins(1)),
            ("0", LIFETIME),
            ("-1", LIFETIME),
            ("null", LIFETIME),
            ("\"soon\"", LIFETIME),
            ("1e300", LIFETIME),
            ("99999999999", LONGEST_LIFETIME),
        ] {
            assert_eq!(lifetime(text), expected, "{text}");
        }
        let long = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(LONGEST_TOKEN + 1));
        for body in [
            "",
            "ok",
            "<html>secret-canary</html>",
            r#"["secret-canary"]"#,
            r#"{"refresh_token":"secret-canary"}"#,
            r#"{"access_token":""}"#,
            r#"{"access_token":7}"#,
            "{\"access_token\":\"secret-canary\\nX: y\"}",
            r#"{"access_token":"a","refresh_token":"secret canary"}"#,
            &long,
        ] {
            let error = read(body).unwrap_err();
            assert!(matches!(error, RestError::Unreadable(_)), "{error:?}");
            let said = format!("{error:?} {error} {}", error.describe());
            assert!(!said.contains("canary") && !said.contains("xxx"), "{said}");
        }
    }

    #[test]
    fn what_is_said_of_a_token_is_read_as_far_as_it_goes() {
        let read = |text: &str| validated(&serde_json::from_str(text).unwrap());
        let channel = Some("5b2e2007760aeb7729487dab".to_owned());
        assert_eq!(
            read(
                r#"{"channel_id":"5b2e2007760aeb7729487dab","expires_in":5,"scopes":["tips:read"]}"#
            ),
            Validated {
                channel,
                left: Some(Duration::from_secs(5)),
                scopes: Some(vec!["tips:read".into()]),
            }
        );
        assert_eq!(
            read(r#"{"channel_id":"main","expires_in":[],"scopes":[1]}"#),
            Validated::default()
        );
    }
}
