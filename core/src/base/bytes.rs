//! Numbers of bytes, with units.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes. In a configuration it is a number, or a text with a unit: `"512k"`, `"10M"`, `"1G"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Bytes {
    /// Reads a number, or a number with a unit.
    pub fn read(text: &str) -> Option<Self> {
        text.trim().parse().ok().map(Self).or_else(|| Self::parse(text.trim()))
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit: u64 = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
            "k" | "kb" | "kib" => 1 << 10,
            "m" | "mb" | "mib" => 1 << 20,
            "g" | "gb" | "gib" => 1 << 30,
            _ => return None,
        };
        digits.trim().parse::<u64>().ok()?.checked_mul(unit).map(Self)
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: bytes as a number, or a text such as \"512k\" or \"10M\"")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Bytes, E> {
                Ok(Bytes(number))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                Bytes::parse(text).ok_or_else(|| {
                    E::custom(format!(
                        "size {text:?} is not understood: write for instance 65536, \"512k\", \"10M\" or \"1G\""
                    ))
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("1k", 1024), ("512K", 512 << 10), ("10M", 10 << 20), ("1G", 1 << 30), ("3 MiB", 3 << 20)]
        {
            assert_eq!(Bytes::parse(text), Some(Bytes(bytes)), "{text}");
        }
        for text in ["", "M", "-1M", "1.5M", "1T", "10", "99999999999999999G"] {
            assert_eq!(Bytes::parse(text), None, "{text}");
        }
    }
}
