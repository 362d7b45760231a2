//! Where a webhook may go: not to a cloud's metadata service, not to what is no host, not to everybody.
//!
//! The address of a webhook is written by the operator, and by nobody else: no part of it comes out of an
//! event. So what is written in `url` is meant, be it this machine (`localhost`, 127.0.0.1) or the local
//! network. What nobody means by it is refused all the same, for a name may be resolved by somebody else:
//! link-local addresses, where clouds hand out credentials of the machine to whoever asks; other metadata
//! services; and addresses that are no host (multicast, unspecified, reserved). What is forbidden can be
//! allowed by naming it in `allow_addresses`. Addresses that carry an IPv4 address inside (mapped, NAT64,
//! 6to4, Teredo, ISATAP) are judged by what they carry, too.
//!
//! The check is made by [`Guard::filter`], on the very addresses that are
//! dialled next. A name that is checked first and resolved again afterwards can change in between. A URL
//! with an address in place of a name is checked earlier as well, by [`Guard::check_host`]: it cannot
//! become better, so it is a mistake in the configuration.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use ipnet::IpNet;
use url::Host;

/// Addresses of metadata services outside the link-local ranges: they hand out credentials of the
/// machine to whoever asks. AWS (IPv6), Google (IPv6), Alibaba, Azure's wire server, Oracle.
const METADATA: &[IpAddr] = &[
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0x00ce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Names under which clouds have their metadata service, and where it is.
const METADATA_NAMES: &[&str] = &[
    "metadata", "metadata.google.internal", "metadata.goog", "instance-data",
    "instance-data.ec2.internal",
];
const METADATA_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254));

/// What is allowed although it is forbidden by default.
#[derive(Debug, Clone, Default)]
pub(super) struct Guard {
    allowed: Vec<IpNet>,
}

/// An address that must not be dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Forbidden {
    address: IpAddr,
    why: &'static str,
}

impl fmt::Display for Forbidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, why } = self;
        write!(f, "{address} is {why}: name it in allow_addresses if it is meant")
    }
}

impl std::error::Error for Forbidden {}

impl Guard {
    /// Reads `allow_addresses`: addresses and networks such as `127.0.0.1` and `fd00:ec2::/32`.
    pub(super) fn new(allowed: &[String]) -> Result<Self, String> {
        let net = |text: &String| {
            text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(
                |_| {
                    format!(
                        "an address or a network such as \"127.0.0.0/8\" was expected, not {text:?}"
                    )
                },
            )
        };
        Ok(Self { allowed: allowed.iter().map(net).collect::<Result<_, _>>()? })
    }

    /// Checks an address.
    pub(super) fn check(&self, address: IpAddr) -> Result<(), Forbidden> {
        let address = address.to_canonical();
        match forbidden(address) {
            Some(why) if !self.allowed.iter().any(|net| net.contains(&address)) => {
                Err(Forbidden { address, why })
            }
            _ => Ok(()),
        }
    }

    /// Checks the host of a URL, where it is an address. The URL's parser has brought the odd spellings
    /// (`0x7f000001`, `127.1`) into one form by then.
    pub(super) fn check_host(&self, host: &Host<&str>) -> Result<(), Forbidden> {
        match *host {
            Host::Ipv4(address) => self.check(address.into()),
            Host::Ipv6(address) => self.check(address.into()),
            Host::Domain(name) => {
                let name = name.trim_end_matches('.').to_ascii_lowercase();
                let metadata = METADATA_NAMES.contains(&&*name);
                if metadata { self.check(METADATA_V4) } else { Ok(()) }
            }
        }
    }

    /// Leaves the addresses that may be dialled; an error if there are only others.
    pub(super) fn filter(
        &self,
        found: impl Iterator<Item = SocketAddr>,
    ) -> Result<Vec<SocketAddr>, Forbidden> {
        let mut refused = None;
        let left: Vec<_> = found
            .filter(|address| match self.check(address.ip()) {
                Ok(()) => true,
                Err(forbidden) => {
                    refused = Some(forbidden);
                    false
                }
            })
            .collect();
        match refused {
            Some(forbidden) if left.is_empty() => Err(forbidden),
            _ => Ok(left),
        }
    }
}

/// Why an address is forbidden by default, if it is.
fn forbidden(address: IpAddr) -> Option<&'static str> {
    if METADATA.contains(&address) {
        return Some("a cloud's metadata service");
    }
    match address {
        IpAddr::V4(address) => forbidden_v4(address),
        IpAddr::V6(address) => forbidden_v6(address),
    }
}

fn forbidden_v4(address: Ipv4Addr) -> Option<&'static str> {
    match address.octets() {
        // Linux takes 0.0.0.0 for itself; the rest of the network is "this network" (RFC 1122).
        [0, ..] => Some("unspecified"),
        [169, 254, ..] => Some("link-local, where clouds keep their metadata service"),
        [224..=239, ..] => Some("multicast"),
        [240..=255, ..] => Some("reserved or broadcast"),
        _ => None,
    }
}

fn forbidden_v6(address: Ipv6Addr) -> Option<&'static str> {
    let segments = address.segments();
    if address.is_unspecified() {
        return Some("unspecified");
    }
    // It looks like an address that carries 0.0.0.1.
    if address.is_loopback() {
        return None;
    }
    let [first, ..] = segments;
    match first {
        0xfe80..=0xfebf => return Some("link-local"),
        // Deprecated by RFC 3879, and once the same as private.
        0xfec0..=0xfeff => return Some("site-local"),
        0xff00.. => return Some("multicast"),
        _ => {}
    }
    carried(segments).into_iter().flatten().find_map(|inner| forbidden(IpAddr::V4(inner)))
}

/// The IPv4 addresses that an IPv6 address carries inside, by the schemes that some gateway or some
/// operating system unpacks.
fn carried(segments: [u16; 8]) -> [Option<Ipv4Addr>; 2] {
    let v4 = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Some(Ipv4Addr::new(a, b, c, d))
    };
    let [.., high, low] = segments;
    let in_front = match segments {
        // 6to4 (RFC 3056), and Teredo's server (RFC 4380).
        [0x2002, high, low, ..] | [0x2001, 0, high, low, ..] => v4(high, low),
        // NAT64's local prefixes (RFC 8215) of 48 bits: a byte of zeros lies inside (RFC 6052 §2.2).
        [0x64, 0xff9b, 1, high, middle, low, ..] => v4(high, (middle << 8) | (low >> 8)),
        _ => None,
    };
    let at_the_end = match segments {
        // Teredo's client, with all bits turned.
        [0x2001, 0, ..] => v4(!high, !low),
        // NAT64's local prefixes of 96 bits. Zeros are the rest of a shorter one.
        [0x64, 0xff9b, 1, ..] => v4(high, low).filter(|address| !address.is_unspecified()),
        // Compatible (RFC 4291 §2.5.5.1), mapped (§2.5.5.2), translated (RFC 2765), NAT64's well-known
        // prefix (RFC 6052), ISATAP (RFC 5214).
        [0, 0, 0, 0, 0, 0 | 0xffff, ..]
        | [0, 0, 0, 0, 0xffff, 0, ..]
        | [0x64, 0xff9b, 0, 0, 0, 0, ..]
        | [.., 0x0000 | 0x0200, 0x5efe, _, _] => v4(high, low),
        _ => None,
    };
    [in_front, at_the_end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(allowed: &[&str]) -> Guard {
        let allowed: Vec<_> = allowed.iter().map(|&text| text.to_owned()).collect();
        Guard::new(&allowed).unwrap()
    }

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| SocketAddr::new(text.parse().unwrap(), 0)).collect()
    }

    #[test]
    fn metadata_services_and_non_hosts_are_forbidden() {
        for address in [
            "0.0.0.0",
            "0.1.2.3",
            "169.254.0.1",
            "169.254.169.254",
            "169.254.170.2",
            "224.0.0.1",
            "239.255.255.250",
            "240.0.0.1",
            "255.255.255.255",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
            "::",
            "fe80::1",
            "febf::1",
            "fec0::1",
            "ff02::1",
            "ff0e::1",
            "fd00:ec2::254",
            "fd20:ce::254",
            // Carried inside.
            "::ffff:169.254.169.254",
            "::ffff:0.0.0.0",
            "::169.254.169.254",
            "::ffff:0:169.254.169.254",
            "64:ff9b::169.254.169.254",
            "64:ff9b::100.100.100.200",
            "64:ff9b:1::169.254.169.254",
            "64:ff9b:1:a9fe:a9:fe00::",
            "2002:a9fe:a9fe::1",
            "2002:a9fe:a9fe::5efe:808:808",
            "2001:0:a9fe:a9fe::",
            "2001:0:0808:0808:0:0:5601:5601",
            "2001:db8::200:5efe:169.254.169.254",
        ] {
            assert!(guard(&[]).check(address.parse().unwrap()).is_err(), "{address}");
        }
    }

    #[test]
    fn this_machine_the_local_network_and_the_internet_are_allowed() {
        for address in [
            "127.0.0.1", "127.0.1.1", "::1", "::ffff:127.0.0.1", "1.1.1.1", "10.0.0.1",
            "172.16.0.1", "192.168.1.20", "100.64.0.1", "198.51.100.1", "64:ff9b:1:808:8:800::",
            "2606:4700::1111", "fd12:3456::1", "::ffff:192.168.1.20", "64:ff9b::8.8.8.8",
            "2002:0808:0808::1",
        ] {
            assert_eq!(guard(&[]).check(address.parse().unwrap()), Ok(()), "{address}");
        }
    }

    #[test]
    fn only_the_named_addresses_are_allowed() {
        let guard = guard(&["169.254.1.1", "169.254.0.0/24", "fe80::1"]);
        for address in ["169.254.1.1", "::ffff:169.254.1.1", "169.254.0.9", "fe80::1"] {
            assert_eq!(guard.check(address.parse().unwrap()), Ok(()), "{address}");
        }
        for address in ["169.254.1.2", "169.254.169.254", "64:ff9b::169.254.1.1", "fe80::2"] {
            assert!(guard.check(address.parse().unwrap()).is_err(), "{address}");
        }
        for text in ["localhost", "127.0.0.1/33", "", "127.0.0.1:80"] {
            assert!(Guard::new(&[text.to_owned()]).is_err(), "{text}");
        }
    }

    #[test]
    fn every_address_of_a_name_is_checked() {
        let left = |texts: &[&str]| guard(&[]).filter(addresses(texts).into_iter());
        assert_eq!(
            left(&["1.1.1.1", "169.254.169.254", "fe80::1", "192.168.0.9"]),
            Ok(addresses(&["1.1.1.1", "192.168.0.9"]))
        );
        assert!(left(&["169.254.169.254"]).is_err());
        assert!(left(&["169.254.169.254", "::ffff:0.0.0.0"]).is_err());
        assert_eq!(left(&[]), Ok(vec![]));
    }

    #[test]
    fn unusual_spellings_of_an_address_are_recognised() {
        for text in [
            "http://169.254.169.254/",
            "http://2852039166/",
            "http://0xa9fea9fe/",
            "http://169.254.43518/",
            "http://0251.0376.0251.0376/",
            "http://169.254.169.254./",
            "http://169。254。169。254/",
            "http://①⑥⑨.254.169.254/",
            "http://0/",
            "http://0.0.0.0/",
            "http://[::]/",
            "http://[::ffff:169.254.169.254]/",
            "http://[::ffff:a9fe:a9fe]/",
            "http://[64:ff9b::a9fe:a9fe]/",
            "http://[2002:a9fe:a9fe::]/",
            "http://user@169.254.169.254/",
            "http://8.8.8.8@169.254.169.254/",
            "http://metadata.google.internal/",
            "http://METADATA.google.internal./",
            "http://instance-data/",
        ] {
            let url = url::Url::parse(text).unwrap();
            assert!(guard(&[]).check_host(&url.host().unwrap()).is_err(), "{text}");
        }
    }
}
