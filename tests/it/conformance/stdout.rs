//! The row for standard output: a child process whose output the test reads.
//!
//! There is no server: whoever reads is the destination. It cannot be reached again once it has gone, it
//! asks for patience by not reading, and it refuses nothing.

use std::sync::Mutex;

use astro_relay::{base::event::Seq, sink::Outgoing};
use serde_json::{Value, json};

use super::{CanBeBusy, CanBeGone, Destination, Rejects};
use crate::support::{
    driven::Driven,
    sinks::outgoing_with,
    stdout_child::{self, Pipe},
};

/// So much that some ten events fill a pipe (64 KiB), and not one.
const PADDING: usize = 6 * 1024;

/// Who reads.
pub struct Reader {
    pipe: Pipe,
    sink: Mutex<Option<Driven>>,
}

impl Destination for Reader {
    const KIND: &'static str = "stdout";
    const ADDRESS: &'static str = "";

    async fn start() -> Self {
        let (sink, pipe) = stdout_child::start();
        Self { pipe, sink: Mutex::new(Some(sink)) }
    }

    fn settings(&self) -> Value {
        json!({})
    }

    async fn received(&self) -> Vec<Seq> {
        self.pipe.numbers()
    }

    fn open(&self) -> Driven {
        self.sink.lock().unwrap().take().expect("it is opened once")
    }

    fn events(numbers: impl IntoIterator<Item = Seq>) -> Vec<Outgoing> {
        let padding = "x".repeat(PADDING);
        let payload = |seq| format!(r#"{{"n":{seq},"padding":"{padding}"}}"#);
        numbers.into_iter().map(|seq| outgoing_with(seq, "", "room", &payload(seq))).collect()
    }
}

impl CanBeBusy for Reader {
    async fn make_busy(&mut self) {
        self.pipe.stop_reading();
    }

    async fn make_free(&mut self) {
        self.pipe.read_on();
    }
}

impl Rejects for Reader {
    /// Its payload has several lines; on standard output it must be one.
    fn spoil(outgoing: &mut Outgoing) {
        let text = String::from_utf8(outgoing.payload.to_vec()).unwrap();
        outgoing.payload = text.replace(',', ",\r\n  ").into();
    }
}

impl CanBeGone for Reader {
    fn finish(&mut self) {
        self.pipe.close();
    }
}
