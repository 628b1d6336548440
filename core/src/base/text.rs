//! Texts and names that come from elsewhere.

/// How long a name may be, in bytes.
pub const NAME_MAX: usize = 64;

/// Whether a name may have this character: it can be typed, printed and mailed as it is.
pub fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-".contains(c)
}

/// A name of at most [`NAME_MAX`] characters, with `instead` for each one that a name may not have.
pub fn as_name(text: &str, instead: char) -> String {
    text.chars().map(|c| if is_of_name(c) { c } else { instead }).take(NAME_MAX).collect()
}

/// A text of at most so many characters, in which nothing can mislead a reader at a terminal.
pub fn harmless(text: &str, most: usize) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).take(most).collect()
}
