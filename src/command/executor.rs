//! The task that executes commands: one after another for each channel, several channels at once.
//!
//! It looks a command up in its memory, holds the rate down, finds out the channel's id and token, and
//! makes the call. Setting an element begins with reading the session: that tells its name in the
//! server's spelling, and what sort of value it takes.
//!
//! It hears nothing itself and sends no answer: that is for whoever has the [`super::CommandSubmitter`].
//!
//! A change that may have been made is never made again here. It is answered
//! with [`ErrorKind::Unknown`], and the session is fetched again, so that at least the relay knows.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use serde_json::{Map, Value};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Answer, Command, ErrorKind, Failure, Order, QueuedCommands, Request,
    memory::{Memory, Recalled, Ticket},
    report, test_event,
};
use crate::{
    astro::rest::{Credentials, Rest, RestError, SessionDocument},
    base::{metrics, supervisor::Factory},
    channel::{
        refresh::{Answered, Refreshes},
        state,
    },
    config::Config,
    gateway::{Targets, table::Table},
    journal::Journal,
};

/// Commands of one channel within [`RATE_TIME`]. A slider that is drawn sends some of them at once; the
/// vendor's server is not there for more.
const RATE: usize = 10;

/// See [`RATE`].
const RATE_TIME: Duration = Duration::from_secs(10);

/// How long a command may wait, from when it was received. Nobody expects it to happen later than that.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it may take. With [`PATIENCE`] it fits the endpoint's limit for a request, 30 s.
const EXECUTION: Duration = Duration::from_secs(24);

/// How long one of its calls may take: `reload` adds up a channel's history.
const CALL: Duration = Duration::from_secs(20);

/// Commands that wait for others of their channel; beyond it the queue fills, and tells.
const WAITING: usize = 64;

/// The task.
#[derive(Debug)]
pub struct Executor {
    tools: Tools,
    inbox: QueuedCommands,
    memory: Memory,
    rate: Rate,
    waiting: VecDeque<Waiting>,
    busy: BTreeSet<String>,
}

/// What a command is executed with.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The REST API.
    pub rest: Rest,
    /// The channels and their credentials, now.
    pub targets: watch::Receiver<Targets>,
    /// Where the rooms of the channels are.
    pub table: Arc<Table>,
    /// Who fetches sessions.
    pub refreshes: Refreshes,
    /// Says how far it was when a change was sent.
    pub journal: Journal,
    /// Where several relays are one: asks that a transaction be executed here and nowhere else.
    pub once: Option<Once>,
    /// The sinks of a test event, now.
    pub config: watch::Receiver<Arc<Config>>,
}

/// Whether a transaction is to be executed here; an error: that cannot be known now. The outer one: nobody was asked,
/// so the command may come again.
pub type Claimed = Result<Result<bool, String>, String>;

/// Asks that of the transaction of a command, known by this text, which is the same on every member that receives the
/// command.
#[derive(Clone)]
pub struct Once(pub Arc<dyn Fn(String) -> BoxFuture<'static, Claimed> + Send + Sync>);

impl std::fmt::Debug for Once {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Once")
    }
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    origin: Arc<str>,
    command: Command,
    /// When it was received.
    since: Instant,
}

/// A command that is dealt with.
struct Done {
    ticket: Ticket,
    origin: Arc<str>,
    answer: Answer,
    /// Whether it was tried. If not it may come again.
    tried: bool,
}

type Running = FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>;

impl Executor {
    /// One that takes its commands from `inbox`.
    pub fn new(inbox: QueuedCommands, tools: Tools) -> Self {
        let tools = Tools { rest: tools.rest.within(CALL), ..tools };
        Self {
            tools,
            inbox,
            memory: Memory::default(),
            rate: Rate::default(),
            waiting: VecDeque::new(),
            busy: BTreeSet::new(),
        }
    }

    /// Executes until it is stopped. What is under way then is finished, what waits is not begun.
    pub async fn run(&mut self, stop: CancellationToken) {
        self.tidy_up();
        let mut running = Running::new();
        loop {
            self.start(&mut running);
            tokio::select! {
                () = stop.cancelled() => break,
                Some(done) = running.next() => self.finish(done),
                Some(request) = self.inbox.0.recv(), if self.waiting.len() < WAITING => {
                    self.take(request);
                }
            }
        }
        while let Ok(request) = self.inbox.0.try_recv() {
            self.take(request);
        }
        while let Some(waiting) = self.waiting.pop_front() {
            self.give_up(&waiting, "the relay is stopping");
        }
        // The supervisor has a deadline for it.
        while let Some(done) = running.next().await {
            self.finish(done);
        }
    }

    /// What an earlier run had under way when it failed has ended with it, nobody knows how.
    fn tidy_up(&mut self) {
        self.busy.clear();
        for (ticket, origin, command) in self.memory.open() {
            if !self.waiting.iter().any(|waiting| waiting.ticket == ticket) {
                let failure = unknown("the relay failed while it was executed");
                let answer = command.answer(Err(failure));
                self.finish(Done { ticket, origin, answer, tried: true });
            }
        }
    }

    fn take(&mut self, request: Request) {
        let now = Instant::now();
        let (origin, since) = (Arc::clone(&request.origin), request.reply.received);
        match self.memory.recall(request, now) {
            Recalled::Waits => metrics::command(&origin, "repeat", "repeated"),
            Recalled::Again(reply, answer) => {
                let transaction = answer.transaction.as_ref().map(ToString::to_string);
                info!(
                    %origin, channel = answer.channel, transaction,
                    "a command came again and gets its first answer"
                );
                metrics::command(&origin, "repeat", "repeated");
                reply.send(&origin, &answer);
            }
            Recalled::Other(reply, command) => {
                let error = "this transaction was that of another command";
                let answer = command.answer(Err(Failure::bad(409, error)));
                report(&origin, &answer, true);
                reply.send(&origin, &Arc::new(answer));
            }
            Recalled::TooMany(reply, command) => {
                let error = "too many wait for the answer to this command";
                let answer = command.answer(Err(Failure::new(ErrorKind::Limited, 429, error)));
                report(&origin, &answer, true);
                reply.send(&origin, &Arc::new(answer));
            }
            Recalled::New(ticket, command) => {
                if self.rate.takes(&command.channel, now) {
                    self.waiting.push_back(Waiting { ticket, origin, command, since });
                } else {
                    let error = format!("more than {RATE} commands within {RATE_TIME:?}");
                    let answer = command.answer(Err(Failure::new(ErrorKind::Limited, 429, error)));
                    self.unexecuted(ticket, &origin, answer);
                }
            }
        }
    }

    /// Begins what waits and whose channel is free, in its order.
    fn start(&mut self, running: &mut Running) {
        let now = Instant::now();
        let mut place = 0;
        while let Some(waiting) = self.waiting.get(place) {
            let late = waiting.since + PATIENCE < now;
            if !late && self.busy.contains(&waiting.command.channel) {
                place += 1;
                continue;
            }
            let Some(waiting) = self.waiting.remove(place) else { return };
            if late {
                self.give_up(&waiting, "those before it took too long");
                continue;
            }
            let Waiting { ticket, origin, command, .. } = waiting;
            self.busy.insert(command.channel.clone());
            let tools = self.tools.clone();
            running.push(Box::pin(async move {
                let executed = timeout(EXECUTION, tools.execute_once(&origin, &command)).await;
                let (tried, outcome) = match executed {
                    Ok(Ok(outcome)) => (true, outcome),
                    Ok(Err(failure)) => (false, Err(failure)),
                    Err(_) => (true, Err(unknown("it took too long, and may have been done"))),
                };
                if outcome.as_ref().is_err_and(|failure| failure.kind == ErrorKind::Unknown) {
                    // Whoever asks may see what has become of it; nobody waits for that here.
                    tools.refreshes.request_later(&command.channel);
                }
                Done { ticket, origin, answer: command.answer(outcome), tried }
            }));
        }
    }

    fn finish(&mut self, done: Done) {
        let Done { ticket, origin, answer, tried } = done;
        self.busy.remove(&answer.channel);
        if !tried {
            self.unexecuted(ticket, &origin, answer);
            return;
        }
        report(&origin, &answer, true);
        let answer = Arc::new(answer);
        for reply in self.memory.answered(ticket, &answer) {
            reply.send(&origin, &answer);
        }
    }

    fn give_up(&mut self, waiting: &Waiting, why: &str) {
        let error = format!("not executed: {why}");
        let answer = waiting.command.answer(Err(Failure::new(ErrorKind::Failed, 503, error)));
        self.unexecuted(waiting.ticket, &waiting.origin, answer);
    }

    fn unexecuted(&mut self, ticket: Ticket, origin: &str, answer: Answer) {
        report(origin, &answer, true);
        let answer = Arc::new(answer);
        for reply in self.memory.forget(ticket) {
            reply.send(origin, &answer);
        }
    }
}

/// When each channel's latest commands came.
#[derive(Debug, Default)]
struct Rate(BTreeMap<String, VecDeque<Instant>>);

impl Rate {
    /// Whether one more is taken now; then it counts.
    fn takes(&mut self, channel: &str, now: Instant) -> bool {
        let lately = self.0.entry(channel.to_owned()).or_default();
        while lately.front().is_some_and(|at| *at + RATE_TIME <= now) {
            lately.pop_front();
        }
        let takes = lately.len() < RATE;
        if takes {
            lately.push_back(now);
        }
        takes
    }
}

impl Tools {
    /// Executes a command unless another member has; an outer error: whether one has is not known, and nothing was
    /// tried.
    async fn execute_once(
        &self,
        origin: &str,
        command: &Command,
    ) -> Result<Result<(), Failure>, Failure> {
        if let (Some(once), Some(transaction)) = (&self.once, &command.transaction) {
            // An origin is the name of a sink, or `http`: the same on every member.
            let key = format!("{origin}/{}/{transaction}", command.channel);
            let refused = |error: String| Failure::new(ErrorKind::Failed, 503, error);
            match once.0(key).await.map_err(refused)? {
                Ok(true) => {}
                Ok(false) => {
                    let error =
                        "another member of the cluster has executed this transaction, or tried to";
                    return Ok(Err(Failure::bad(409, error)));
                }
                Err(error) => return Ok(Err(refused(error))),
            }
        }
        Ok(self.execute(command).await)
    }

    async fn execute(&self, command: &Command) -> Result<(), Failure> {
        if command.order == Order::Refresh {
            let done = self.refreshes.request(&command.channel).await;
            return done.map_err(|error| Failure::new(ErrorKind::Failed, 502, error));
        }
        if let Order::Test(kind) = command.order {
            let config = self.config.borrow().clone();
            return test_event::execute(&config, &command.channel, kind).await;
        }
        let credentials = self.whom(&command.channel).await?;
        // What is received from here on is newer than what the server may answer.
        let since = self.journal.figures().last;
        let (answer, source) = match &command.order {
            Order::Set { element, value } => {
                (self.set(&credentials, element, value).await?, state::Source::Fetched)
            }
            Order::Reset => (self.rest.reset(&credentials).await, state::Source::Reset),
            Order::Reload => (self.rest.reload(&credentials).await, state::Source::Fetched),
            Order::Refresh | Order::Test(_) => return Ok(()),
        };
        match answer.map_err(|error| failure(&error))? {
            Some(document) => {
                let answered = Answered { since, document, source };
                self.refreshes.take_in(&command.channel, answered);
            }
            // A server that says no more than yes.
            None => self.refreshes.request_later(&command.channel),
        }
        Ok(())
    }

    /// Sets an element; what the server answered to it.
    async fn set(
        &self,
        credentials: &Credentials,
        key: &str,
        value: &Value,
    ) -> Result<Result<Option<SessionDocument>, RestError>, Failure> {
        let elements = self.rest.session(credentials).await.map_err(|error| failure(&error))?.data;
        let name = state::name(key, |name| elements.contains_key(name));
        let Some(now) = elements.get(&name) else {
            return Err(Failure::bad(404, "the session has no such element"));
        };
        let value = fitted(now, value)?;
        let change = Map::from_iter([(name, value)]);
        Ok(self.rest.update(credentials, &change).await)
    }

    /// The channel's id and token.
    async fn whom(&self, channel: &str) -> Result<Credentials, Failure> {
        let account = self.targets.borrow().channels.get(channel).cloned();
        let account = account.ok_or_else(|| Failure::bad(404, "there is no such channel"))?;
        let told: Vec<Arc<str>> = self.table.read(|state| {
            let confirmed = state
                .subscriptions
                .iter()
                .filter(|(one, row)| &*one.channel == channel && row.state.is_confirmed());
            confirmed.filter_map(|(one, row)| row.room(one).cloned()).collect()
        });
        let rooms = account.room.iter().map(|room| &**room);
        let rooms = rooms.chain(told.iter().map(|room| &**room));
        let credentials = self.rest.credentials(rooms, &account.token, account.token_type);
        credentials.await.map_err(|error| {
            // It may name a place on this machine, which is nobody's business out there.
            error!(channel, %error, "the REST API cannot be asked in the channel's name");
            Failure::new(
                ErrorKind::Failed,
                500,
                "the relay has no usable credential for this channel",
            )
        })
    }
}

/// The field of an element that a number alone sets: its only one, or the amount of what has no name, as that of a
/// goal.
fn number_field(fields: &Map<String, Value>) -> Option<&str> {
    let only = fields.keys().next().filter(|_| fields.len() == 1);
    let amount = (!fields.contains_key("name")).then_some("amount");
    let field = only.map(String::as_str).or(amount)?;
    fields.get(field).is_some_and(Value::is_number).then_some(field)
}

/// The value as the element takes it: of its own type, or a number for one of its fields, as in
/// `{"amount": 5}`. Anything else would break the overlays that show it.
fn fitted(now: &Value, value: &Value) -> Result<Value, Failure> {
    match (now, value) {
        (Value::Object(fields), Value::Number(_)) => {
            let Some(field) = number_field(fields) else {
                let error = "the element is more than a number: an object was expected";
                return Err(Failure::bad(400, error));
            };
            let mut fields = fields.clone();
            fields.insert(field.to_owned(), value.clone());
            Ok(Value::Object(fields))
        }
        (Value::Null, _)
        | (Value::Object(_), Value::Object(_))
        | (Value::Array(_), Value::Array(_))
        | (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_)) => Ok(value.clone()),
        (now, _) => {
            let wanted = match now {
                Value::Object(_) => "an object",
                Value::Array(_) => "a list",
                Value::String(_) => "a text",
                Value::Number(_) => "a number",
                _ => "true or false",
            };
            Err(Failure::bad(400, format!("the element takes {wanted}")))
        }
    }
}

fn unknown(error: impl Into<String>) -> Failure {
    Failure::new(ErrorKind::Unknown, 504, error)
}

/// What a call's error means to whoever ordered it.
fn failure(error: &RestError) -> Failure {
    let failed = |status, text: String| Failure::new(ErrorKind::Failed, status, text);
    match error {
        RestError::Refused { status, text, .. } => failed(*status, text.clone()),
        RestError::Unknown(_) => unknown(error.to_string()),
        RestError::Unreachable(_) => failed(503, "the REST API cannot be reached".into()),
        RestError::Unreadable(_) => failed(502, "the REST API's answer cannot be read".into()),
        RestError::Client(_)
        | RestError::Channel(_)
        | RestError::Token
        | RestError::Credential(_) => {
            warn!(error = error.describe(), "a command cannot be made a call");
            failed(500, "the relay cannot make this call".into())
        }
    }
}

/// The task made over and over from the same state, for a supervisor: its memory outlives a failure.
pub fn factory(executor: Executor) -> Factory {
    let executor = Arc::new(Mutex::new(executor));
    Box::new(move |stop| {
        let executor = Arc::clone(&executor);
        Ok(Box::pin(async move { executor.lock().await.run(stop).await }))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        base::tls,
        channel::refresh::{RefreshRequest, RefreshRequests, refreshes},
        command::{CommandSubmitter, IncomingCommand, Replies, ReplyTo, command_queue},
        config::{Astro, Commands},
    };

    /// An executor whose only tool that works is the keeper, played by the test.
    fn executor() -> (Executor, CommandSubmitter, Replies, RefreshRequests) {
        tls::install_provider();
        let labels = ["a", "b"].map(str::to_owned).into();
        let (queue, queued) = command_queue(watch::channel(labels).1);
        let (submitter, answers) = queue.submitter("home", None, &Commands::All(true));
        let (refreshes, requests) = refreshes();
        let tools = Tools {
            rest: Rest::new(&Astro::default()),
            targets: watch::channel(Targets::default()).1,
            table: Arc::default(),
            refreshes,
            once: None,
            config: watch::channel(Arc::default()).1,
            journal: Journal::in_memory(1 << 20),
        };
        (Executor::new(queued, tools), submitter, answers, requests)
    }

    fn refresh(submitter: &CommandSubmitter, channel: &str, transaction: &str) {
        let payload = json!({ "transaction": transaction }).to_string();
        submitter.submit(IncomingCommand {
            channel,
            path: &["relay", "refresh"],
            payload: payload.as_bytes(),
            retained: false,
            redelivered: false,
            late: false,
            reply_to: Some(ReplyTo::default()),
        });
    }

    async fn answered(answers: &mut Replies) -> (String, Option<u16>) {
        let answer = answers.recv().await.unwrap().answer;
        let transaction = answer.transaction.as_ref().and_then(Value::as_str).unwrap();
        (transaction.to_owned(), answer.outcome.clone().err().map(|failure| failure.status))
    }

    async fn next(requests: &mut mpsc::Receiver<RefreshRequest>) -> RefreshRequest {
        requests.recv().await.unwrap()
    }

    fn ok(transaction: &str) -> (String, Option<u16>) {
        (transaction.to_owned(), None)
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_executes_one_at_a_time_and_holds_up_no_other() {
        let (mut executor, submitter, mut answers, requests) = executor();
        let mut requests = requests.lock().await;
        let stop = CancellationToken::new();
        let outside = async {
            for (channel, transaction) in [("a", "1"), ("a", "2"), ("b", "3"), ("a", "1")] {
                refresh(&submitter, channel, transaction);
            }
            let first = next(&mut requests).await;
            let other = next(&mut requests).await;
            assert_eq!((&*first.channel, &*other.channel), ("a", "b"));
            other.answer(Ok(()));
            assert_eq!(answered(&mut answers).await, ok("3"));
            assert!(requests.try_recv().is_err(), "the second waits for the first");
            first.answer(Err("no".into()));
            // The one that came again gets the same answer.
            let refused = ("1".to_owned(), Some(502));
            assert_eq!(answered(&mut answers).await, refused);
            assert_eq!(answered(&mut answers).await, refused);
            next(&mut requests).await.answer(Ok(()));
            assert_eq!(answered(&mut answers).await, ok("2"));
            refresh(&submitter, "a", "1");
            assert_eq!(answered(&mut answers).await, refused);
            assert!(requests.try_recv().is_err());
            stop.cancel();
        };
        tokio::join!(executor.run(stop.clone()), outside);
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_too_long_is_given_up_and_what_waited_for_it_is_not_executed() {
        let (mut executor, submitter, mut answers, requests) = executor();
        let mut requests = requests.lock().await;
        let stop = CancellationToken::new();
        let outside = async {
            let begun = Instant::now();
            refresh(&submitter, "a", "1");
            refresh(&submitter, "a", "2");
            let kept = next(&mut requests).await;
            assert_eq!(answered(&mut answers).await, ("1".to_owned(), Some(504)));
            assert_eq!(begun.elapsed(), EXECUTION);
            assert_eq!(answered(&mut answers).await, ("2".to_owned(), Some(503)));
            drop(kept);
            // Of the first nobody knows: the keeper is asked to look, and nobody waits for it.
            next(&mut requests).await.answer(Ok(()));
            assert!(requests.try_recv().is_err());
            // The second was never tried, so that it may come again.
            refresh(&submitter, "a", "2");
            next(&mut requests).await.answer(Ok(()));
            assert_eq!(answered(&mut answers).await, ok("2"));
            stop.cancel();
        };
        tokio::join!(executor.run(stop.clone()), outside);
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_that_waited_too_long_in_the_queue_is_not_executed() {
        let (mut executor, submitter, mut answers, requests) = executor();
        let mut requests = requests.lock().await;
        let stop = CancellationToken::new();
        refresh(&submitter, "a", "1");
        // Nobody takes it from the queue meanwhile.
        tokio::time::advance(PATIENCE + Duration::from_millis(1)).await;
        refresh(&submitter, "b", "2");
        let outside = async {
            assert_eq!(answered(&mut answers).await, ("1".to_owned(), Some(503)));
            let second = next(&mut requests).await;
            assert_eq!(&*second.channel, "b");
            second.answer(Ok(()));
            assert_eq!(answered(&mut answers).await, ok("2"));
            assert!(requests.try_recv().is_err());
            stop.cancel();
        };
        tokio::join!(executor.run(stop.clone()), outside);
    }

    #[tokio::test(start_paused = true)]
    async fn in_a_cluster_each_origin_has_transactions_of_its_own() {
        let (mut executor, _, _, requests) = executor();
        let mut requests = requests.lock().await;
        let labels = ["a"].map(str::to_owned).into();
        let (queue, queued) = command_queue(watch::channel(labels).1);
        executor.inbox = queued;
        let claimed = std::sync::Mutex::new(BTreeSet::new());
        executor.tools.once = Some(Once(Arc::new(move |transaction| {
            let is_new = claimed.lock().unwrap().insert(transaction);
            Box::pin(async move { Ok(Ok(is_new)) })
        })));
        let stop = CancellationToken::new();
        let keeper = async {
            while let Some(request) = requests.recv().await {
                request.answer(Ok(()));
            }
        };
        let outside = async {
            for origin in ["home", "http"] {
                let (submitter, mut answers) = queue.submitter(origin, None, &Commands::All(true));
                refresh(&submitter, "a", "7");
                assert_eq!(answered(&mut answers).await, ok("7"), "{origin}");
            }
            stop.cancel();
        };
        let beside = async {
            tokio::select! {
                () = keeper => {}
                () = outside => {}
            }
        };
        tokio::join!(executor.run(stop.clone()), beside);
    }

    #[tokio::test(start_paused = true)]
    async fn a_transaction_that_nobody_was_asked_about_may_come_again() {
        let (mut executor, submitter, mut answers, requests) = executor();
        let mut requests = requests.lock().await;
        let no_answer = Err("no answer".to_owned());
        let claims = [Err("no server".to_owned()), Ok(Ok(true)), Ok(Ok(false)), Ok(no_answer)];
        let claims = std::sync::Mutex::new(VecDeque::from(claims));
        executor.tools.once = Some(Once(Arc::new(move |_| {
            let claim = claims.lock().unwrap().pop_front().unwrap();
            Box::pin(async move { claim })
        })));
        let stop = CancellationToken::new();
        let outside = async {
            refresh(&submitter, "a", "1");
            assert_eq!(answered(&mut answers).await, ("1".to_owned(), Some(503)));
            assert!(requests.try_recv().is_err(), "nothing is executed");
            refresh(&submitter, "a", "1");
            next(&mut requests).await.answer(Ok(()));
            assert_eq!(answered(&mut answers).await, ok("1"));
            // What another member has executed is answered once more without asking.
            for _ in 0..2 {
                refresh(&submitter, "a", "2");
                assert_eq!(answered(&mut answers).await, ("2".to_owned(), Some(409)));
            }
            // So is one whose claim may be stored yet: it would find that.
            for _ in 0..2 {
                refresh(&submitter, "a", "3");
                assert_eq!(answered(&mut answers).await, ("3".to_owned(), Some(503)));
            }
            stop.cancel();
        };
        tokio::join!(executor.run(stop.clone()), outside);
    }

    #[tokio::test(start_paused = true)]
    async fn being_told_to_stop_finishes_what_is_under_way() {
        let (mut executor, submitter, mut answers, requests) = executor();
        let mut requests = requests.lock().await;
        let stop = CancellationToken::new();
        let outside = async {
            refresh(&submitter, "a", "1");
            refresh(&submitter, "a", "2");
            let first = next(&mut requests).await;
            stop.cancel();
            assert_eq!(answered(&mut answers).await, ("2".to_owned(), Some(503)));
            first.answer(Ok(()));
            assert_eq!(answered(&mut answers).await, ok("1"));
        };
        tokio::join!(executor.run(stop.clone()), outside);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_under_way_when_it_failed_is_answered_and_not_executed_again() {
        let (mut executor, submitter, mut answers, requests) = executor();
        let mut requests = requests.lock().await;
        let stop = CancellationToken::new();
        refresh(&submitter, "a", "1");
        refresh(&submitter, "a", "2");
        tokio::select! {
            () = executor.run(stop.clone()) => panic!("nobody stops it"),
            _ = next(&mut requests) => {}
        }
        // Its future is gone, as after a panic; the supervisor begins again.
        let outside = async {
            assert_eq!(answered(&mut answers).await, ("1".to_owned(), Some(504)));
            next(&mut requests).await.answer(Ok(()));
            assert_eq!(answered(&mut answers).await, ok("2"));
            refresh(&submitter, "a", "1");
            assert_eq!(answered(&mut answers).await, ("1".to_owned(), Some(504)));
            assert!(requests.try_recv().is_err());
            stop.cancel();
        };
        tokio::join!(executor.run(stop.clone()), outside);
    }

    #[tokio::test(start_paused = true)]
    async fn a_channel_has_a_rate() {
        let mut rate = Rate::default();
        for n in 0..RATE {
            assert!(rate.takes("a", Instant::now()), "{n}");
            tokio::time::advance(Duration::from_millis(100)).await;
        }
        assert!(!rate.takes("a", Instant::now()));
        assert!(rate.takes("b", Instant::now()));
        tokio::time::advance(RATE_TIME.saturating_sub(Duration::from_millis(950))).await;
        assert!(rate.takes("a", Instant::now()), "the first is long ago");
        assert!(!rate.takes("a", Instant::now()));
    }

    #[test]
    fn a_value_keeps_the_sort_of_its_element() {
        for (now, value, fit) in [
            (json!({"amount": 5}), json!(12), Some(json!({"amount": 12}))),
            (json!({"amount": 5}), json!(12.5), Some(json!({"amount": 12.5}))),
            (json!({"count": 5}), json!(0), Some(json!({"count": 0}))),
            (json!({"name": "a"}), json!(1), None),
            (
                json!({"amount": 3, "currency": "USD"}),
                json!(10),
                Some(json!({"amount": 10, "currency": "USD"})),
            ),
            (json!({"amount": "3", "currency": "USD"}), json!(10), None),
            (json!({"count": 3, "currency": "USD"}), json!(10), None),
            (json!({"name": "a", "amount": 5}), json!(1), None),
            (json!({}), json!(1), None),
            (json!({"amount": 5}), json!("12,5"), None),
            (json!({"amount": 5}), json!({"amount": 6}), Some(json!({"amount": 6}))),
            (json!([1]), json!([]), Some(json!([]))),
            (json!([1]), json!({}), None),
            (json!("a"), json!("b"), Some(json!("b"))),
            (json!(1), json!(2), Some(json!(2))),
            (json!(1), json!("2"), None),
            (json!(true), json!(0), None),
            (json!(null), json!("x"), Some(json!("x"))),
        ] {
            assert_eq!(fitted(&now, &value).ok(), fit, "{now} {value}");
        }
    }

    #[test]
    fn an_error_is_told_without_what_lies_behind_it() {
        let source = || Box::<dyn std::error::Error + Send + Sync>::from("at /etc/canary");
        for (error, status, kind) in [
            (RestError::Unreachable(source()), 503, ErrorKind::Failed),
            (RestError::Unknown(source()), 504, ErrorKind::Unknown),
            (RestError::Unreadable(source()), 502, ErrorKind::Failed),
            (RestError::Client(source()), 500, ErrorKind::Failed),
            (RestError::Channel("canary".into()), 500, ErrorKind::Failed),
            (RestError::Token, 500, ErrorKind::Failed),
        ] {
            let failure = failure(&error);
            assert_eq!((failure.status, failure.kind), (status, kind), "{error:?}");
            assert!(!failure.error.contains("canary"), "{failure:?}");
        }
    }
}
