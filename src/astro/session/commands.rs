//! The commands of a session: which is sent next, what an answer means, and what is asked again.

use std::{collections::HashSet, time::Duration};

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::{
    Effects, Refusal, Session, Subscription, SubscriptionState, patience,
    subscription::{Entry, Nonce, RETRIED_SOON, is_failure},
    wire::{self, Response, Verb},
};
use crate::{
    base::{
        clock::UnixMillis,
        text::{EXCERPT, excerpt},
    },
    config::Secret,
};

/// After `rate_limit_exceeded` the gateway wants quiet for this long (newer documents, FAQ).
const RATE_LIMIT_QUIET: Duration = Duration::from_secs(5);

/// An `unsubscribe` is sent so often, where it is not answered or fails. Then it is given up: what the gateway
/// still sends belongs to no channel.
const UNSUBSCRIBES: u32 = 3;

/// First wait before a failed `subscribe` is sent again; doubles up to `astro.retry_refused`, or to
/// [`RETRY_LONGEST`] where that is longer.
const RETRY_FIRST: Duration = Duration::from_secs(2);

/// Longer than anybody waits for a subscription that failed.
const RETRY_LONGEST: Duration = RETRIED_SOON.saturating_mul(2);

/// What is shorter is no token of the gateway's, and may stand in any word.
const SHORTEST_TOKEN: usize = 8;

impl Session {
    /// Sends one command, if there is one to send: first what is given up, then what is wanted,
    /// beginning with what waits longest.
    pub(super) fn send_next(&mut self, now: Instant, effects: &mut Effects) -> bool {
        let nonce = self.next_nonce;
        let nonce_text = format!("{}-{nonce}", self.number);
        if let Some(leaving) = self.leaving.iter_mut().find(|leaving| leaving.nonce.is_none()) {
            let subscription = &leaving.subscription;
            effects.send.push(wire::command(
                Verb::Unsubscribe,
                &nonce_text,
                &subscription.topic,
                leaving.room.as_deref(),
                &leaving.token,
                subscription.token_type,
            ));
            leaving.nonce = Some(nonce);
            leaving.asked_at = Some(now);
            leaving.attempts += 1;
            // What is to stay is asked for again behind it.
            for entry in self.entries.iter_mut().filter(|entry| leaving.may_end(entry)) {
                // An answer that is still to come was given before.
                entry.nonces = [None, None];
                if entry.may_be_subscribed() {
                    entry.set(SubscriptionState::Waiting, &mut effects.updates);
                }
            }
        } else {
            let waiting = |entry: &&mut Entry| entry.state == SubscriptionState::Waiting;
            let next = self.entries.iter_mut().filter(waiting).min_by_key(|entry| entry.asked_at);
            let Some(entry) = next else { return false };
            let token = match &entry.wanted.token {
                Ok(token) => token,
                Err(why) => {
                    let wait = Some(self.config.retry_refused.0);
                    let refusal = Refusal::new("no_token", &excerpt(why, EXCERPT), wait, now);
                    refusal.log(&entry.wanted.subscription);
                    entry.set(SubscriptionState::Refused(refusal), &mut effects.updates);
                    self.rooms = None;
                    return true;
                }
            };
            let subscription = &entry.wanted.subscription;
            effects.send.push(wire::command(
                Verb::Subscribe,
                &nonce_text,
                &subscription.topic,
                subscription.room.as_deref(),
                token,
                subscription.token_type,
            ));
            // What is said of another token than this one is no answer any more.
            entry.nonces = [Some(nonce), entry.nonces[0].filter(|_| !entry.is_renewed)];
            entry.is_renewed = false;
            entry.asked_at = Some(now);
            entry.set(SubscriptionState::Pending, &mut effects.updates);
        }
        self.rooms = None;
        self.next_nonce = self.next_nonce.saturating_add(1);
        self.pace.sent(now);
        true
    }

    pub(super) fn on_response(
        &mut self,
        response: &Response<'_>,
        received: UnixMillis,
        now: Instant,
        effects: &mut Effects,
    ) {
        // Whatever it says, it may change what brings messages, and under which room.
        self.rooms = None;
        let code = response.error.as_deref().map(|code| self.without_tokens(code));
        let code = code.as_deref();
        if code == Some("rate_limit_exceeded") {
            self.on_rate_limit(now, effects);
            return;
        }
        let text = code.map(|_| self.without_tokens(&response.text)).unwrap_or_default();
        let nonce = self.nonce(&response.nonce);
        let named = |own: &Option<Nonce>| own.is_some() && *own == nonce;
        // An `unsubscribe` that failed is repeated like one that was not answered.
        let has_failed = code.is_some_and(is_failure);
        self.leaving.retain(|leaving| has_failed || !named(&leaving.nonce));
        // Otherwise it answers an `unsubscribe`, or something that is no longer wanted.
        let Some(index) = self.entries.iter().position(|entry| entry.nonces.iter().any(named))
        else {
            if let Some(code) = code {
                debug!(code, text, "an error that belongs to no subscription");
            }
            return;
        };
        let others_confirmed = self.entries.iter().any(|entry| entry.state.is_confirmed());
        let Some(entry) = self.entries.get_mut(index) else { return };
        if let Some(code) = code.filter(|code| is_failure(code))
            && entry.nonces[0] != nonce
        {
            // It has been asked for again since: the answer to that is waited for.
            debug!(code, text, "an error that comes too late");
            entry.nonces[1] = None;
            return;
        }
        entry.nonces = [None, None];
        entry.unanswered = 0;
        let Some(code) = code else {
            entry.failures = 0;
            entry.confirmed_at = Some(received);
            let room = response.room.as_deref().map(Into::into);
            entry.set(SubscriptionState::Confirmed(room), &mut effects.updates);
            return;
        };
        self.counts.refused += 1;
        entry.failures = entry.failures.saturating_add(1);
        let again = match code {
            failed if is_failure(failed) => {
                let doubled = RETRY_FIRST.saturating_mul(1 << (entry.failures - 1).min(10));
                Some(doubled.min(self.config.retry_refused.0.max(RETRY_LONGEST)))
            }
            // The token was refused, and there is another one by now.
            "err_unauthorized" if entry.is_renewed => {
                entry.failures = 0;
                entry.set(SubscriptionState::Waiting, &mut effects.updates);
                return;
            }
            // The documents speak of a limit on subscriptions a connection under this code. Where
            // nothing else is confirmed on the connection, another would not help.
            "err_bad_request" if speaks_of_limit(&text) && others_confirmed => {
                info!(
                    subscriptions = self.entries.len(),
                    text, "the gateway takes no more subscriptions on this connection"
                );
                self.overflow(index, effects);
                return;
            }
            "err_bad_request" if !speaks_of_limit(&text) => None,
            "invalid_message" | "invalid_message_type" => None,
            // Also a code of which no document says that it is final.
            _ => Some(self.config.retry_refused.0),
        };
        let refusal = Refusal::by_gateway(code, &text, &entry.wanted, again, now);
        refusal.log(&entry.wanted.subscription);
        entry.set(SubscriptionState::Refused(refusal), &mut effects.updates);
    }

    /// Words of the gateway without the tokens that it was sent: some servers repeat them.
    pub fn without_tokens(&self, words: &str) -> String {
        let wanted = self.entries.iter().filter_map(|entry| entry.wanted.token.as_ref().ok());
        let tokens: HashSet<&Secret> =
            wanted.chain(self.leaving.iter().map(|leaving| &leaving.token)).collect();
        let tokens = tokens.into_iter().filter(|token| token.expose().len() >= SHORTEST_TOKEN);
        tokens.fold(words.to_owned(), |words, token| token.hidden_in(&words))
    }

    /// The command's number in a nonce; `None`: it is of another connection, or unknown.
    fn nonce(&self, text: &str) -> Option<Nonce> {
        let (connection, nonce) = text.split_once('-')?;
        (connection.parse() == Ok(self.number)).then(|| nonce.parse().ok()).flatten()
    }

    /// The gateway counts commands and has had too many. It does not say which it dropped: all that
    /// is unanswered is asked for again, later and slower.
    fn on_rate_limit(&mut self, now: Instant, effects: &mut Effects) {
        self.counts.rate_limited += 1;
        warn!("the gateway's command rate was exceeded; waiting");
        self.pace.too_fast(now + RATE_LIMIT_QUIET);
        for entry in &mut self.entries {
            if entry.state == SubscriptionState::Pending {
                entry.set(SubscriptionState::Waiting, &mut effects.updates);
            }
        }
        self.leaving.retain_mut(|leaving| {
            leaving.nonce = None;
            leaving.attempts < UNSUBSCRIBES
        });
    }

    /// Moves one subscription, and all that wait behind it, to another connection.
    fn overflow(&mut self, index: usize, effects: &mut Effects) {
        for (at, entry) in std::mem::take(&mut self.entries).into_iter().enumerate() {
            if at == index || entry.state == SubscriptionState::Waiting {
                effects.overflow.push(entry.wanted.subscription);
            } else {
                self.entries.push(entry);
            }
        }
        self.rooms = None;
    }

    pub(super) fn give_up_unanswered(&mut self, now: Instant, effects: &mut Effects) {
        for entry in &mut self.entries {
            let patience = patience(&self.config, entry.failures);
            let late = |asked: Instant| now >= asked + patience;
            if entry.state == SubscriptionState::Pending && entry.asked_at.is_some_and(late) {
                entry.failures = entry.failures.saturating_add(1);
                entry.unanswered = entry.unanswered.saturating_add(1);
                entry.set(SubscriptionState::Waiting, &mut effects.updates);
                let subscription = &entry.wanted.subscription;
                warn!(
                    channel = %subscription.channel,
                    topic = %subscription.topic,
                    "a subscription was not answered; asking again"
                );
            }
        }
    }

    /// What is given up and was not answered, or failed, is given up again, a few times.
    pub(super) fn repeat_unsubscribes(&mut self, now: Instant) {
        let before = self.leaving.len();
        self.leaving.retain_mut(|leaving| {
            let patience = patience(&self.config, leaving.attempts);
            if leaving.nonce.is_none() || leaving.asked_at.is_none_or(|at| now < at + patience) {
                return true;
            }
            leaving.nonce = None;
            if leaving.attempts >= UNSUBSCRIBES {
                let Subscription { channel, topic, .. } = &*leaving.subscription;
                warn!(%channel, %topic, "an unsubscribe was not answered, or failed; it is given up");
            }
            leaving.attempts < UNSUBSCRIBES
        });
        if self.leaving.len() < before {
            self.rooms = None;
        }
    }

    pub(super) fn retry_refused(&mut self, now: Instant, effects: &mut Effects) {
        for entry in &mut self.entries {
            if let SubscriptionState::Refused(Refusal { retry_at: Some(at), .. }) = &entry.state
                && now >= *at
            {
                entry.set(SubscriptionState::Waiting, &mut effects.updates);
                self.rooms = None;
            }
        }
    }
}

/// Whether the gateway says that it would take this, were there not too much already.
fn speaks_of_limit(text: &str) -> bool {
    text.to_ascii_lowercase().contains("limit")
}
