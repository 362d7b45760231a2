//! Where a broker is, from its URL.
//!
//! Credentials do not belong in a URL: a URL is shown in logs, and a secret never is.

use url::Url;

/// How a broker is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    /// `mqtt://`
    Tcp,
    /// `mqtts://`
    Tls,
    /// `ws://`
    WebSocket,
    /// `wss://`
    WebSocketTls,
}

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) wire: Wire,
    pub(super) host: String,
    pub(super) port: u16,
}

impl Target {
    /// Reads a URL; the error says what was expected.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "a URL such as mqtt://host, mqtts://host, ws://host/mqtt or wss://host/mqtt was expected";
        // The text is not repeated: it may hold a password.
        let url = Url::parse(text).map_err(|error| format!("{EXPECTED}: {error}"))?;
        // Ports as registered with IANA for mqtt, secure-mqtt, http and https.
        let (wire, port) = match url.scheme() {
            "mqtt" => (Wire::Tcp, 1883),
            "mqtts" => (Wire::Tls, 8883),
            "ws" => (Wire::WebSocket, 80),
            "wss" => (Wire::WebSocketTls, 443),
            _ => return Err(EXPECTED.into()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("credentials belong into user and password, not into the URL".into());
        }
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(EXPECTED)?;
        Ok(Self { wire, host: host.to_owned(), port: url.port().unwrap_or(port) })
    }

    /// Whether certificates are needed.
    pub(super) fn is_tls(&self) -> bool {
        matches!(self.wire, Wire::Tls | Wire::WebSocketTls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_says_how_and_where() {
        for (text, wire, host, port) in [
            ("mqtt://localhost", Wire::Tcp, "localhost", 1883),
            ("mqtt://10.0.0.7:1884", Wire::Tcp, "10.0.0.7", 1884),
            ("mqtts://broker.example", Wire::Tls, "broker.example", 8883),
            ("mqtt://[::1]:1883", Wire::Tcp, "[::1]", 1883),
            ("ws://broker.example/mqtt", Wire::WebSocket, "broker.example", 80),
            ("wss://broker.example:8084/mqtt", Wire::WebSocketTls, "broker.example", 8084),
        ] {
            let target = Target { wire, host: host.into(), port };
            assert_eq!(Target::parse(text), Ok(target), "{text}");
        }
    }

    #[test]
    fn a_url_with_a_password_is_refused_without_repeating_it() {
        for text in
            ["mqtt://me:hunter2@host", "mqtt://me:hunter2@ho st", "http://hunter2", "hunter2"]
        {
            let error = Target::parse(text).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
