//! WebSocket frames as a server writes them (RFC 6455, section 5.2): unmasked, any opcode, any bytes.
//!
//! Written by hand for two reasons: a simulated fault is a frame that a library refuses to write, and
//! a frame that is appended straight to a connection's buffer costs one copy. Reading, where the
//! rules are strict, is left to the library.

/// Opcode of a text frame.
pub(crate) const TEXT: u8 = 0x1;
/// Opcode of a binary frame.
pub(crate) const BINARY: u8 = 0x2;
/// Opcode of a close frame.
pub(crate) const CLOSE: u8 = 0x8;
/// Opcode of a ping.
pub(crate) const PING: u8 = 0x9;
/// Opcode of a pong.
pub(crate) const PONG: u8 = 0xA;

/// The bit that marks the last frame of a message.
const FIN: u8 = 0x80;
/// The longest payload whose length fits the second byte.
const SHORT: usize = 125;

/// Appends one frame that is a whole message.
pub(crate) fn put(buffer: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    put_part(buffer, FIN | opcode, payload);
}

/// Appends a text message cut into `parts` frames (at least one), with a ping between the first two:
/// control frames may come inside a fragmented message.
pub(crate) fn put_fragmented(buffer: &mut Vec<u8>, payload: &[u8], parts: usize) {
    /// Opcode of every frame of a message but the first.
    const CONTINUATION: u8 = 0x0;
    let size = payload.len().div_ceil(parts.max(1)).max(1);
    let mut pieces = payload.chunks(size).peekable();
    let mut opcode = TEXT;
    while let Some(piece) = pieces.next() {
        let last = if pieces.peek().is_none() { FIN } else { 0 };
        put_part(buffer, last | opcode, piece);
        if opcode == TEXT && last == 0 {
            put(buffer, PING, b"between");
        }
        opcode = CONTINUATION;
    }
}

/// Appends a close frame. Any code is written, also those that must not be sent.
pub(crate) fn put_close(buffer: &mut Vec<u8>, code: u16, reason: &str) {
    let mut payload = code.to_be_bytes().to_vec();
    // A control frame's payload is 125 bytes at most, two of which are the code.
    payload.extend(reason.bytes().take(SHORT - 2));
    put(buffer, CLOSE, &payload);
}

#[expect(clippy::cast_possible_truncation, reason = "each arm holds only what fits")]
fn put_part(buffer: &mut Vec<u8>, first: u8, payload: &[u8]) {
    buffer.push(first);
    match payload.len() {
        len @ 0..=SHORT => buffer.push(len as u8),
        len @ ..=0xFFFF => {
            buffer.push(126);
            buffer.extend_from_slice(&(len as u16).to_be_bytes());
        }
        len => {
            buffer.push(127);
            buffer.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    buffer.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_takes_as_few_bytes_as_it_needs() {
        for (len, head) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let mut buffer = Vec::new();
            put(&mut buffer, TEXT, &vec![b'x'; len]);
            assert_eq!(buffer.len(), head + len, "{len}");
            assert_eq!(buffer[0], 0x81);
        }
    }

    #[test]
    fn only_the_last_fragment_is_marked_as_last() {
        let mut buffer = Vec::new();
        put_fragmented(&mut buffer, b"abcdef", 3);
        assert_eq!(
            buffer, b"\x01\x02ab\x89\x07between\x00\x02cd\x80\x02ef",
            "text, ping, continuation, last continuation"
        );
    }

    #[test]
    fn a_close_frame_carries_any_code() {
        let mut buffer = Vec::new();
        put_close(&mut buffer, 1006, "gone");
        assert_eq!(buffer, b"\x88\x06\x03\xEEgone");
    }
}
