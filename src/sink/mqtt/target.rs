//! Where a broker is, from its URL.
//!
//! Credentials do not belong in a URL: a URL is shown in logs, and a secret never is. An IPv6 address has
//! brackets in a URL and nowhere else; a certificate is compared with [`Target::host`], which has none.

use url::{Host, Url};

/// The transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Tcp,
    Tls,
    WebSocket,
    WebSocketTls,
}

/// Where a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) wire: Wire,
    pub(super) host: String,
    pub(super) port: u16,
    /// The whole, for a `WebSocket`.
    pub(super) url: String,
}

impl Target {
    /// Reads a URL; the error says what was expected.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        const EXPECTED: &str = "a URL such as mqtt://host, mqtts://host, ws://host/mqtt or wss://host/mqtt was expected";
        // The text is not repeated: it may hold a password.
        let url = Url::parse(text).map_err(|error| format!("{EXPECTED}: {error}"))?;
        // Ports as registered with IANA for mqtt, secure-mqtt, http and https.
        let (wire, port) = match url.scheme() {
            "mqtt" | "tcp" => (Wire::Tcp, 1883),
            "mqtts" | "ssl" | "tls" => (Wire::Tls, 8883),
            "ws" => (Wire::WebSocket, 80),
            "wss" => (Wire::WebSocketTls, 443),
            _ => return Err(EXPECTED.into()),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err("credentials belong into user and password, not into the URL".into());
        }
        let host = match url.host().ok_or(EXPECTED)? {
            Host::Ipv6(address) => address.to_string(),
            Host::Ipv4(address) => address.to_string(),
            Host::Domain("") => return Err(EXPECTED.into()),
            Host::Domain(name) if name.contains(',') => {
                return Err("a sink has one broker: give the second one a sink of its own".into());
            }
            // As it is asked for: in a URL of this scheme it may stand in any alphabet.
            Host::Domain(name) => match Host::parse(name) {
                Ok(Host::Domain(name)) => name,
                _ => name.to_owned(),
            },
        };
        let port = url.port().unwrap_or(port);
        if port == 0 {
            return Err("there is no port 0".into());
        }
        Ok(Self { wire, host, port, url: url.into() })
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
    fn urls_are_parsed() {
        for (text, wire, host, port) in [
            ("mqtt://localhost", Wire::Tcp, "localhost", 1883),
            ("MQTT://localhost/", Wire::Tcp, "localhost", 1883),
            ("tcp://my_broker:1883", Wire::Tcp, "my_broker", 1883),
            ("mqtt://10.0.0.7:1884", Wire::Tcp, "10.0.0.7", 1884),
            ("mqtt://host:80", Wire::Tcp, "host", 80),
            ("mqtts://broker.example", Wire::Tls, "broker.example", 8883),
            ("mqtts://broker.example.", Wire::Tls, "broker.example.", 8883),
            ("mqtts://bücher.example", Wire::Tls, "xn--bcher-kva.example", 8883),
            ("ssl://broker.example:443", Wire::Tls, "broker.example", 443),
            ("mqtt://[::1]:1883", Wire::Tcp, "::1", 1883),
            ("mqtts://[2001:DB8::0:7]", Wire::Tls, "2001:db8::7", 8883),
            ("ws://broker.example/mqtt", Wire::WebSocket, "broker.example", 80),
            ("ws://[::1]:9001", Wire::WebSocket, "::1", 9001),
            ("WSS://broker.example:8084/mqtt?a=b", Wire::WebSocketTls, "broker.example", 8084),
        ] {
            let target = Target::parse(text).unwrap();
            let found = (target.wire, target.host.as_str(), target.port);
            assert_eq!(found, (wire, host, port), "{text}");
        }
        let target = Target::parse("WSS://Broker.example:443/a/b?c=d").unwrap();
        assert_eq!(target.url, "wss://broker.example/a/b?c=d");
        for text in ["mqtt://", "mqtt:host", "host", "host:1883", "mqtt://host:0", "mqtt://host:x"]
        {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn several_brokers_in_one_url_are_refused() {
        for text in ["mqtt://a,mqtt://b", "mqtt://a,b", "wss://a,wss://b"] {
            let error = Target::parse(text).unwrap_err();
            assert!(error.contains("one broker"), "{text}: {error}");
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
