//! `replay`: asks for events to be handed to a sink again.

use std::io::Write as _;

use clap::Args;

use super::{Where, failed, moment, pattern};
use crate::{
    app::cli::{Done, Failed, out},
    base::clock::{self, UnixMillis},
    delivery::route::Pattern,
    journal::{Replay, StoreError},
};

/// `replay`
#[derive(Debug, Args)]
pub(in crate::app::cli) struct ReplayArgs {
    #[command(flatten)]
    journal: Where,
    /// The sink that gets them.
    #[arg(long)]
    sink: String,
    /// From: a time (RFC 3339), or an age such as 2h
    #[arg(long, value_parser = moment)]
    from: UnixMillis,
    /// Until: a time or an age [default: now]
    #[arg(long, value_parser = moment)]
    until: Option<UnixMillis>,
    /// Only topics of this pattern.
    #[arg(long, value_parser = pattern)]
    topic: Option<Pattern>,
}

pub(in crate::app::cli) fn replay(args: &ReplayArgs) -> Done {
    let store = args.journal.open()?;
    let known = store.cursors().map_err(failed)?;
    if !known.iter().any(|cursor| cursor.sink == args.sink) {
        let names: Vec<_> = known.iter().map(|cursor| cursor.sink.as_str()).collect();
        let text =
            format!("the journal knows no sink {:?}; known: {}", args.sink, names.join(", "));
        return Err(Failed::new(Failed::USAGE, text));
    }
    let range = || -> Result<_, StoreError> {
        let last = store.bounds()?.map_or(0, |(_, last)| last);
        let until = match args.until {
            None => last,
            Some(time) => store.first_since(time + 1)?.map_or(last, |seq| seq - 1),
        };
        Ok(store.first_since(args.from)?.map(|first| (first, until)))
    };
    let Some((first, until)) = range().map_err(failed)? else {
        return Ok(writeln!(out::text(), "no events in that time")?);
    };
    let replay = Replay {
        number: 0,
        sink: args.sink.clone(),
        position: first - 1,
        until,
        topic: args.topic.as_ref().map(ToString::to_string),
    };
    store
        .allow_requests()
        .and_then(|()| store.request_replay(&replay, clock::now()))
        .map_err(failed)?;
    Ok(writeln!(
        out::text(),
        "events {first} to {until} will be handed to {} again, marked as replayed",
        args.sink
    )?)
}
