//! The task that looks after the tokens: whose they are, when they end, and the refresh of those of OAuth2.
//!
//! A token is refreshed well ahead of its end, or when the gateway refuses everything that is asked for
//! with it. The new pair is stored in the files that the old one was read from, and the connections to the
//! gateway are notified; REST calls read the file each time. How a pair is kept safe stands at the head of
//! [`refresh`].
//!
//! Of a token that is not refreshed it only knows what can be known, for the status.

mod held;
mod refresh;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::CancellationToken;

use self::held::{Attended, HeldToken};
use super::token_status::Tokens;
use crate::{
    astro::{rest::Rest, session::SubscriptionState},
    base::clock,
    gateway::{
        Account, Targets,
        table::{State, Table},
    },
};

/// Tokens that are looked after at once: a hundred channels are read within seconds, and the vendor's
/// server does not take us for an attack.
const AT_ONCE: usize = 4;

/// Changes of the gateway's table within this time are read at once.
const DEBOUNCE: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub struct TokenKeeper {
    rest: Rest,
    table: Arc<Table>,
    tokens: Arc<Tokens>,
    /// Changed when a token was refreshed, so that connections read it again.
    targets: watch::Sender<Targets>,
    channels: BTreeMap<Arc<str>, Channel>,
}

#[derive(Debug)]
struct Channel {
    account: Account,
    topics: Vec<Arc<str>>,
    /// Whether it is still configured.
    is_wanted: bool,
    /// `None` while it is being looked after.
    held: Option<Box<HeldToken>>,
    due: Instant,
    /// The gateway refuses everything that is asked for with it.
    refused: bool,
}

impl Channel {
    fn new(label: &Arc<str>, account: &Account, topics: Vec<Arc<str>>) -> Self {
        let held = Some(Box::new(HeldToken::new(label, account.clone(), topics.clone())));
        let account = account.clone();
        Self { account, topics, is_wanted: true, held, due: Instant::now(), refused: false }
    }

    fn configure(&mut self, account: &Account, topics: Vec<Arc<str>>) {
        if &self.account != account {
            self.account = account.clone();
        }
        self.topics = topics;
        self.compare();
    }

    /// Starts again where it is configured in another way. One that is being looked after is compared when
    /// it comes back.
    fn compare(&mut self) {
        let is_other = |held: &mut Box<HeldToken>| !held.is_of(&self.account, &self.topics);
        let Some(held) = self.held.take_if(is_other) else { return };
        let next = held.configured(self.account.clone(), self.topics.clone());
        (self.held, self.due, self.refused) = (Some(Box::new(next)), Instant::now(), false);
    }

    /// One that was removed stays until it is looked after no more, and its pair is stored.
    fn is_needed(&self) -> bool {
        self.is_wanted || self.held.as_ref().is_none_or(|held| held.has_unsaved())
    }
}

type Work =
    FuturesUnordered<Pin<Box<dyn Future<Output = (Arc<str>, Box<HeldToken>, Attended)> + Send>>>;

impl TokenKeeper {
    pub fn new(
        rest: Rest,
        table: Arc<Table>,
        tokens: Arc<Tokens>,
        targets: watch::Sender<Targets>,
    ) -> Self {
        Self { rest, table, tokens, targets, channels: BTreeMap::new() }
    }

    /// Looks after them until it is stopped. A refresh that is under way then is finished: its answer may
    /// exist only once. The supervisor has a deadline for it.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut targets = self.targets.subscribe();
        let mut changes = self.table.changes();
        let mut read_at = None;
        let mut work = Work::new();
        targets.mark_changed();
        loop {
            let due = self.start(&mut work);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = work.next() => self.take(done),
                Ok(()) = targets.changed() => {
                    let wanted = targets.borrow_and_update().clone();
                    self.adopt(&wanted);
                }
                Ok(()) = changes.changed(), if read_at.is_none() => {
                    read_at = Some(Instant::now() + DEBOUNCE);
                }
                () = clock::until(read_at) => {
                    read_at = None;
                    self.read_table();
                }
                () = clock::until(due) => {}
            }
        }
        while let Some(done) = work.next().await {
            self.take(done);
        }
    }

    /// Takes up the channels as they are configured now.
    fn adopt(&mut self, targets: &Targets) {
        let mut topics: HashMap<&str, Vec<Arc<str>>> = HashMap::new();
        for subscription in &targets.subscriptions {
            let of_channel = topics.entry(&subscription.channel).or_default();
            of_channel.push(Arc::clone(&subscription.topic));
        }
        let tokens = &self.tokens;
        self.channels.retain(|label, channel| {
            channel.is_wanted = targets.channels.contains_key(label);
            if !channel.is_wanted {
                tokens.set(label, None);
            }
            channel.is_needed()
        });
        for (label, account) in &targets.channels {
            let topics = topics.remove(&**label).unwrap_or_default();
            if let Some(known) = self.channels.get_mut(label) {
                known.configure(account, topics);
            } else {
                let channel = Channel::new(label, account, topics);
                self.channels.insert(Arc::clone(label), channel);
            }
        }
    }

    /// Starts what is due; answers when the next is, `None` while there are enough.
    fn start(&mut self, work: &mut Work) -> Option<Instant> {
        let now = Instant::now();
        let mut next: Option<Instant> = None;
        for (label, channel) in &mut self.channels {
            if channel.held.is_none() {
                continue;
            }
            if channel.due > now {
                next = Some(next.map_or(channel.due, |next| next.min(channel.due)));
                continue;
            }
            if work.len() >= AT_ONCE {
                return None;
            }
            let Some(mut held) = channel.held.take() else { continue };
            let refused = std::mem::take(&mut channel.refused);
            let (label, rest) = (Arc::clone(label), self.rest.clone());
            work.push(Box::pin(async move {
                let attended = held.attend(&rest, refused).await;
                (label, held, attended)
            }));
        }
        next
    }

    fn take(&mut self, (label, held, attended): (Arc<str>, Box<HeldToken>, Attended)) {
        let Some(channel) = self.channels.get_mut(&label) else { return };
        if channel.is_wanted {
            self.tokens.set(&label, Some(held.status()));
        }
        channel.due = Instant::now() + attended.wait;
        channel.held = Some(held);
        channel.compare();
        if !channel.is_needed() {
            self.channels.remove(&label);
        }
        if attended.refreshed {
            self.targets.send_modify(|targets| targets.refreshed += 1);
        }
    }

    /// Where the gateway refuses everything that is asked for in a channel's name, its token has ended, or
    /// was withdrawn. Where it accepts some of it, what it refuses is for a scope.
    fn read_table(&mut self) {
        let refused = self.table.read(all_refused);
        for (label, channel) in &mut self.channels {
            let is_refused = refused.contains(&**label);
            if is_refused && channel.held.as_ref().is_some_and(|held| held.may_help()) {
                (channel.refused, channel.due) = (true, Instant::now());
            }
        }
    }
}

/// The channels whose credentials are refused, and for which nothing is confirmed or about to be answered.
/// What is refused for another reason, such as a topic that does not exist, says nothing of them.
fn all_refused(state: &State) -> HashSet<Arc<str>> {
    let mut refused = HashSet::new();
    let mut others = HashSet::new();
    for (subscription, row) in &state.subscriptions {
        let label = &subscription.channel;
        match &row.state {
            SubscriptionState::Refused(refusal) if &*refusal.code == "err_unauthorized" => {
                refused.insert(Arc::clone(label));
            }
            answer if answer.is_confirmed() || row.is_waited_for() => {
                others.insert(label);
            }
            _ => {}
        }
    }
    refused.retain(|label| !others.contains(label));
    refused
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        astro::session::{Refusal, Subscription},
        config::TokenType,
        gateway::table::SubscriptionRow,
    };

    #[test]
    fn a_topic_that_is_refused_for_itself_says_nothing_of_the_token() {
        let refused = |code: &str| {
            let refusal = Refusal::new(code, "no", None, Instant::now());
            SubscriptionState::Refused(refusal)
        };
        let unauthorised = || refused("err_unauthorized");
        let typo = || refused("err_bad_request");
        let confirmed = || SubscriptionState::Confirmed(None);
        for (states, expected) in [
            (vec![unauthorised(), unauthorised()], true),
            (vec![unauthorised(), typo()], true),
            (vec![typo(), typo()], false),
            (vec![unauthorised(), typo(), confirmed()], false),
            (vec![unauthorised(), SubscriptionState::Waiting], false),
            (vec![unauthorised(), SubscriptionState::Pending], false),
        ] {
            let mut state = State::default();
            for (order, of_topic) in states.into_iter().enumerate() {
                let subscription = Subscription {
                    channel: "main".into(),
                    topic: format!("topic-{order}").into(),
                    room: None,
                    token_type: TokenType::Oauth2,
                    token_room: None,
                };
                let mut row = SubscriptionRow::new(order);
                row.state = of_topic;
                state.subscriptions.insert(Arc::new(subscription), row);
            }
            assert_eq!(all_refused(&state).contains("main"), expected, "{state:?}");
        }
    }
}
