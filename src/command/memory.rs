//! What was ordered lately, and what was answered: a command that comes again gets the first answer.
//!
//! It does no I/O: requests and times go in, and what is to be done with each comes out.
//!
//! It is a memory, not a record. It has a limit, an age, and ends with the
//! process; a command that comes again after that is a new one.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Answer, Command, PendingReply, Request, queue::REPLIES};

/// Commands that are remembered. With the executor's limits it is more than a minute of one channel's
/// at full rate, and less than ten megabytes.
const MOST: usize = 256;

/// How long they are remembered. A client that asks again has done so by then; one that counts its
/// transactions from 1 after a restart is believed.
const AGE: Duration = Duration::from_mins(10);

/// By what a remembered command is known while it is under way.
pub(super) type Ticket = u64;

/// What a request is.
#[derive(Debug)]
pub(super) enum Recalled {
    /// A new one; its answer is to be stored here.
    New(Ticket, Command),
    /// It was answered: here is the answer again.
    Again(PendingReply, Arc<Answer>),
    /// It is under way, and will get the same answer.
    Waits,
    /// It is under way, and too many wait for its answer already.
    TooMany(PendingReply, Command),
    /// Its transaction was that of another command.
    Other(PendingReply, Command),
}

/// The memory.
#[derive(Debug, Default)]
pub(super) struct Memory {
    entries: VecDeque<Entry>,
    last: Ticket,
}

#[derive(Debug)]
struct Entry {
    ticket: Ticket,
    origin: Arc<str>,
    command: Command,
    at: Instant,
    /// Who waits for the answer: no more than find room on the way back.
    replies: Vec<PendingReply>,
    answer: Option<Arc<Answer>>,
}

impl Entry {
    /// Whether it is the same one again: by its transaction, or, where it has none, by what it says, if
    /// the transport holds that it may have been sent before.
    fn is_like(&self, request: &Request) -> bool {
        let (known, new) = (&self.command, &request.command);
        let alike = match (&known.transaction, &new.transaction) {
            (Some(known), Some(new)) => known == new,
            (None, None) => request.redelivered && known.order == new.order,
            _ => false,
        };
        alike && self.origin == request.origin && known.channel == new.channel
    }
}

impl Memory {
    /// Looks a request up, and remembers a new one.
    pub(super) fn recall(&mut self, request: Request, now: Instant) -> Recalled {
        self.forget_old(now);
        let known = self.entries.iter_mut().find(|entry| entry.is_like(&request));
        let Request { command, origin, reply, .. } = request;
        match known {
            Some(entry) if entry.command.order != command.order => Recalled::Other(reply, command),
            Some(Entry { answer: Some(answer), .. }) => Recalled::Again(reply, Arc::clone(answer)),
            Some(entry) if entry.replies.len() >= REPLIES => Recalled::TooMany(reply, command),
            Some(entry) => {
                entry.replies.push(reply);
                Recalled::Waits
            }
            None => {
                self.last += 1;
                let ticket = self.last;
                let replies = vec![reply];
                let copy = command.clone();
                self.entries.push_back(Entry {
                    ticket,
                    origin,
                    command,
                    at: now,
                    replies,
                    answer: None,
                });
                Recalled::New(ticket, copy)
            }
        }
    }

    /// A command was answered: tells who is to hear it.
    pub(super) fn answered(&mut self, ticket: Ticket, answer: &Arc<Answer>) -> Vec<PendingReply> {
        let entry = self.entries.iter_mut().find(|entry| entry.ticket == ticket);
        entry.map_or_else(Vec::new, |entry| {
            entry.answer = Some(Arc::clone(answer));
            std::mem::take(&mut entry.replies)
        })
    }

    /// A command was not even tried, so that it may come again: tells who is to hear it.
    pub(super) fn forget(&mut self, ticket: Ticket) -> Vec<PendingReply> {
        let place = self.entries.iter().position(|entry| entry.ticket == ticket);
        let entry = place.and_then(|place| self.entries.remove(place));
        entry.map_or_else(Vec::new, |entry| entry.replies)
    }

    /// Those that have no answer: they wait, are under way, or were when the executor failed.
    pub(super) fn open(&self) -> Vec<(Ticket, Arc<str>, Command)> {
        let open = self.entries.iter().filter(|entry| entry.answer.is_none());
        open.map(|entry| (entry.ticket, Arc::clone(&entry.origin), entry.command.clone())).collect()
    }

    fn forget_old(&mut self, now: Instant) {
        let mut spare = (self.entries.len() + 1).saturating_sub(MOST);
        // What is under way is not forgotten; the executor's limits hold it down.
        self.entries.retain(|entry| {
            let done = entry.answer.is_some();
            let drop = done && (spare > 0 || entry.at + AGE < now);
            spare -= usize::from(drop && spare > 0);
            !drop
        });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tokio::sync::mpsc;

    use super::*;
    use crate::command::Order;

    fn request(
        origin: &str,
        order: Order,
        transaction: Option<Value>,
        redelivered: bool,
    ) -> Request {
        let reply =
            PendingReply { reply_to: None, replies: mpsc::channel(1).0, received: Instant::now() };
        let command = Command { channel: "main".into(), order, transaction };
        Request { command, origin: origin.into(), redelivered, reply }
    }

    fn new(memory: &mut Memory, request: Request) -> (Ticket, Arc<Answer>) {
        let Recalled::New(ticket, command) = memory.recall(request, Instant::now()) else {
            panic!("it is new")
        };
        (ticket, Arc::new(command.answer(Ok(()))))
    }

    #[tokio::test(start_paused = true)]
    async fn what_comes_again_gets_the_first_answer() {
        let one = || Some(json!("1"));
        let mut memory = Memory::default();
        let (ticket, answer) = new(&mut memory, request("home", Order::Reset, one(), false));
        let again = || request("home", Order::Reset, one(), false);
        assert!(matches!(memory.recall(again(), Instant::now()), Recalled::Waits));
        assert_eq!(memory.answered(ticket, &answer).len(), 2);
        let Recalled::Again(_, found) = memory.recall(again(), Instant::now()) else {
            panic!("it is known")
        };
        assert!(Arc::ptr_eq(&found, &answer));
        // Another command of the same number is somebody's mistake.
        let other = request("home", Order::Reload, one(), false);
        assert!(matches!(memory.recall(other, Instant::now()), Recalled::Other(..)));
        // Somebody else counts from 1 too.
        new(&mut memory, request("bus", Order::Reset, one(), false));
        new(&mut memory, request("home", Order::Reset, Some(json!(1)), false));
        tokio::time::advance(AGE + Duration::from_secs(1)).await;
        new(&mut memory, again());
    }

    #[tokio::test(start_paused = true)]
    async fn repeats_that_wait_for_an_answer_are_bounded() {
        let again = || request("home", Order::Reset, Some(json!("1")), false);
        let mut memory = Memory::default();
        let (ticket, answer) = new(&mut memory, again());
        for n in 1..REPLIES {
            assert!(matches!(memory.recall(again(), Instant::now()), Recalled::Waits), "{n}");
        }
        assert!(matches!(memory.recall(again(), Instant::now()), Recalled::TooMany(..)));
        assert_eq!(memory.answered(ticket, &answer).len(), REPLIES);
        // Afterwards there is an answer, and nobody has to wait for it.
        assert!(matches!(memory.recall(again(), Instant::now()), Recalled::Again(..)));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_transaction_only_a_marked_repeat_is_one() {
        let mut memory = Memory::default();
        let (ticket, answer) = new(&mut memory, request("home", Order::Reset, None, false));
        memory.answered(ticket, &answer);
        let (ticket, answer) = new(&mut memory, request("home", Order::Reset, None, false));
        memory.answered(ticket, &answer);
        let again = request("home", Order::Reset, None, true);
        assert!(matches!(memory.recall(again, Instant::now()), Recalled::Again(..)));
        // Marked, and never heard before: it is executed.
        new(&mut memory, request("home", Order::Reload, None, true));
    }

    #[tokio::test(start_paused = true)]
    async fn it_has_a_limit_and_forgets_what_was_never_tried() {
        let mut memory = Memory::default();
        let (first, _) = new(&mut memory, request("home", Order::Reset, None, false));
        for n in 0..2 * MOST {
            let (ticket, answer) =
                new(&mut memory, request("home", Order::Reload, Some(json!(n)), false));
            assert_eq!(memory.answered(ticket, &answer).len(), 1);
        }
        assert_eq!(memory.entries.len(), MOST);
        // It is under way still.
        assert_eq!(memory.forget(first).len(), 1);
        assert_eq!(memory.forget(first).len(), 0);
        new(&mut memory, request("home", Order::Reset, None, true));
    }
}
