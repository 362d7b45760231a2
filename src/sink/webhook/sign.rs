//! Signatures by the Standard Webhooks specification (`spec/standard-webhooks.md`, "Signature scheme").
//!
//! What is signed is `id.timestamp.body`; the header carries one `v1,<base64>` for each secret, so
//! that a receiver may change its secret whenever it likes while two are configured.
//!
//! The timestamp is that of the attempt, the id is that of the event. A repeat
//! has the same id and another signature.

use base64::{
    Engine,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD},
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::config::Secret;

/// What a secret begins with; base64 follows.
const PREFIX: &str = "whsec_";

/// Lengths of a key in bytes: "between 24 bytes (192 bits) and 64 bytes (512 bits)".
const KEY_BYTES: std::ops::RangeInclusive<usize> = 24..=64;

/// Secrets are pasted from many places; some of them leave the padding off.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Signs with all configured secrets at once.
#[derive(Clone)]
pub(super) struct Signer(Vec<Hmac<Sha256>>);

/// A secret that is none. Says what is wrong with it, never what it is.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretFormatError {
    /// Something else than base64.
    #[error("a secret such as \"whsec_…\" was expected: what follows the prefix is not base64")]
    Encoding,
    /// Too short to protect, or too long to be a secret of this kind.
    #[error(
        "the secret has {0} bytes: 24 to 64 are expected, such as from `openssl rand -base64 32`"
    )]
    Length(usize),
}

impl Signer {
    /// Takes the secrets, newest first. With none, nothing is signed.
    pub(super) fn new<'a>(
        secrets: impl IntoIterator<Item = &'a Secret>,
    ) -> Result<Self, SecretFormatError> {
        let key = |secret: &Secret| {
            let text = secret.expose().trim();
            let key = BASE64
                .decode(text.strip_prefix(PREFIX).unwrap_or(text))
                .map_err(|_| SecretFormatError::Encoding)?;
            if !KEY_BYTES.contains(&key.len()) {
                return Err(SecretFormatError::Length(key.len()));
            }
            Hmac::new_from_slice(&key).map_err(|_| SecretFormatError::Length(key.len()))
        };
        secrets.into_iter().map(key).collect::<Result<_, _>>().map(Self)
    }

    /// The value of `webhook-signature`; nothing where there is no secret.
    pub(super) fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> Option<String> {
        // `v1,`, 44 characters, a space.
        let mut header = String::with_capacity(48 * self.0.len());
        for key in &self.0 {
            let mut mac = key.clone();
            for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                mac.update(part);
            }
            if !header.is_empty() {
                header.push(' ');
            }
            header.push_str("v1,");
            STANDARD.encode_string(mac.finalize().into_bytes(), &mut header);
        }
        (!header.is_empty()).then_some(header)
    }
}

/// One that signs with the secrets of all.
impl FromIterator<Self> for Signer {
    fn from_iter<T: IntoIterator<Item = Self>>(signers: T) -> Self {
        Self(signers.into_iter().flat_map(|Self(keys)| keys).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

    fn signer(secrets: &[&str]) -> Result<Signer, SecretFormatError> {
        let secrets: Vec<_> = secrets.iter().map(|&secret| Secret::new(secret)).collect();
        Signer::new(&secrets)
    }

    #[test]
    fn signs_as_the_reference_does() {
        for (id, timestamp, body) in [
            ("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, r#"{"test": 2432232314}"#),
            ("01HQ0000000000000000000001", 1_700_000_000, ""),
            ("01HQ0000000000000000000002", 1, "Grüße, 世界"),
        ] {
            let expected = standardwebhooks::Webhook::new(SECRET)
                .unwrap()
                .sign(id, timestamp, body.as_bytes())
                .unwrap();
            let found =
                signer(&[SECRET]).unwrap().sign(id, &timestamp.to_string(), body.as_bytes());
            assert_eq!(found, Some(expected));
        }
        // The specification's own example.
        let found = signer(&[SECRET])
            .unwrap()
            .sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", br#"{"test": 2432232314}"#);
        assert_eq!(found.as_deref(), Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="));
    }

    #[test]
    fn signs_with_all_secrets_or_with_none() {
        let both = signer(&[SECRET, OTHER]).unwrap().sign("a", "1", b"x").unwrap();
        let parts: Vec<_> = both.split(' ').collect();
        let one = |secret| signer(&[secret]).unwrap().sign("a", "1", b"x").unwrap();
        assert_eq!(parts, [one(SECRET), one(OTHER)]);
        assert_eq!(signer(&[]).unwrap().sign("a", "1", b"x"), None);
    }

    #[test]
    fn a_secret_is_taken_as_it_is_pasted_and_a_bad_one_is_told_but_not_shown() {
        let expected = signer(&[SECRET]).unwrap().sign("a", "1", b"x");
        for same in [
            SECRET,
            "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            " whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n",
        ] {
            assert_eq!(signer(&[same]).unwrap().sign("a", "1", b"x"), expected);
        }
        // 25 bytes: their base64 has padding, or should have.
        for padded in [
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAA==",
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwAA",
        ] {
            assert!(signer(&[padded]).is_ok());
        }
        for bad in ["whsec_", "whsec_aHVudGVyMg==", "hunter2 hunter2 hunter2 hunter2!", "whsec_%%%"]
        {
            let Err(error) = signer(&[bad]) else { panic!("{bad}") };
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }
}
