//! Events that are too large for one message of NATS (`max_payload`: 1 MiB unless the server says
//! otherwise). Astro sends some: a whole overlay, for instance.
//!
//! All pieces but the last are messages of their own on `<name>.log.PART`, each under the event's key and its
//! place, so that the log recognises copies of them. The event's own message has the last piece, and names the
//! sequence numbers of the others in the header `Astro-Parts`. So a reader has to remember nothing: it skips
//! pieces, and reads those of an event when it comes to it.

use async_nats::{
    HeaderMap, HeaderName,
    jetstream::{
        Context,
        context::PublishError,
        publish::PublishAck,
        stream::{LastRawMessageErrorKind, Stream},
    },
};
use bytes::Bytes;

use crate::sink::nats::headers::MESSAGE_ID;

/// The sequence numbers of the pieces before this one.
const PARTS: HeaderName = HeaderName::from_static("Astro-Parts");

/// The last word of the subject of pieces. No label has capitals.
const PART: &str = "PART";

/// Pieces of an event, at most.
const MOST: usize = 1000;

/// The largest message that goes in one piece: an eighth is left for headers.
pub(super) fn largest(max_payload: usize) -> usize {
    max_payload - max_payload / 8
}

/// The pieces of a message that is too large: half of what NATS takes, so that a server can also give them
/// out in base64.
pub(super) fn pieces(message: &Bytes, max_payload: usize) -> Vec<Bytes> {
    if message.len() <= largest(max_payload) {
        return vec![message.clone()];
    }
    let size = (max_payload / 2).max(1);
    let starts = (0..message.len()).step_by(size);
    starts.map(|start| message.slice(start..(start + size).min(message.len()))).collect()
}

/// Whether a message of the log is a piece of an event, and none itself.
pub(super) fn is_piece(subject: &str) -> bool {
    subject.rsplit('.').next() == Some(PART)
}

/// Publishes an event, in pieces where that is needed. The answer is that to its own message, or to the first
/// piece that is not stored.
pub(super) async fn publish(
    context: &Context,
    cluster: &str,
    subject: String,
    mut headers: HeaderMap,
    mut pieces: Vec<Bytes>,
) -> Result<PublishAck, PublishError> {
    let last = pieces.pop().unwrap_or_default();
    let key = headers.get(MESSAGE_ID).map(|key| key.as_str().to_owned()).unwrap_or_default();
    let mut seqs: Vec<String> = Vec::new();
    for (number, piece) in pieces.into_iter().enumerate() {
        let mut about = HeaderMap::new();
        about.insert(MESSAGE_ID, format!("{key}#{number}"));
        let subject = format!("{cluster}.log.{PART}");
        let ack = context.publish_with_headers(subject, about, piece).await?.await?;
        if ack.sequence == 0 {
            return Ok(ack);
        }
        seqs.push(ack.sequence.to_string());
    }
    if !seqs.is_empty() {
        headers.insert(PARTS, seqs.join(" "));
    }
    context.publish_with_headers(subject, headers, last).await?.await
}

/// The whole message of an event of the log; `None`: a piece of it is gone.
pub(super) async fn whole(
    log: &Stream,
    headers: &HeaderMap,
    last: &Bytes,
) -> Result<Option<Bytes>, async_nats::Error> {
    let Some(seqs) = headers.get(PARTS) else { return Ok(Some(last.clone())) };
    let mut message = Vec::new();
    for (number, seq) in seqs.as_str().split(' ').enumerate() {
        let Some(seq) = seq.parse().ok().filter(|_| number < MOST) else { return Ok(None) };
        match log.get_raw_message(seq).await {
            Ok(piece) if is_piece(&piece.subject) => message.extend_from_slice(&piece.payload),
            Ok(_) => return Ok(None),
            Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => {
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    message.extend_from_slice(last);
    Ok(Some(message.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_small_enough_and_make_the_whole() {
        for length in [0, 1, 875, 876, 1000, 1001, 12_345] {
            let message: Bytes =
                (0..length).map(|n: u32| n.to_le_bytes()[0]).collect::<Vec<_>>().into();
            let pieces = pieces(&message, 1000);
            assert_eq!(pieces.concat(), message);
            assert_eq!(pieces.len() > 1, length > 875, "{length}");
            assert!(pieces.iter().all(|piece| piece.len() <= if length > 875 { 500 } else { 875 }));
        }
        assert!(is_piece("astro.log.PART"));
        assert!(!is_piece("astro.log.part"));
    }
}
