//! Passing over values: by their size, or verified to the bottom.
//!
//! ```text
//!  skip()   size ──▶ next value               constant time but for descriptors
//!  check()  code ─┬─ scalar: text is text, booleans are 0 or 1
//!                 ├─ list, map: count <= bytes, each element, nothing left, no two equal keys
//!                 ├─ array: constructor once, then each element; zero-width ones only counted
//!                 └─ described: descriptor, value
//! ```
//!
//! The recursion is at most [`DEPTH_MAX`] deep and all loops together run for at most
//! [`ELEMENTS_MAX`] elements, so that neither stack nor time is in the sender's hands.

use super::layout::{Body, Layout, Prefix, layout};
use super::{DEPTH_MAX, DecodeError, ELEMENTS_MAX, Fault, Reader, code};

impl<'a> Reader<'a> {
    /// Consumes the next value by its size, in constant time for anything without a descriptor.
    ///
    /// # Errors
    /// Where the value is cut short, its format code unknown or its descriptors too deep. What is
    /// inside lists, maps and arrays is not looked at.
    #[inline]
    pub fn skip(&mut self) -> Result<(), DecodeError> {
        self.skip_at(DEPTH_MAX)
    }

    fn skip_at(&mut self, depth_left: u32) -> Result<(), DecodeError> {
        let code = self.byte()?;
        if code == code::DESCRIBED {
            let depth_left = self.deeper(depth_left)?;
            self.skip_at(depth_left)?;
            return self.skip_at(depth_left);
        }
        self.skip_data(code)
    }

    pub(super) fn skip_data(&mut self, code: u8) -> Result<(), DecodeError> {
        let len = match layout(code) {
            Some(Layout::Fixed(width)) => width,
            Some(Layout::Variable(prefix) | Layout::Compound(prefix) | Layout::Array(prefix)) => {
                self.length(prefix)? as usize
            }
            None => return Err(self.unexpected(code)),
        };
        self.take(len).map(|_| ())
    }

    /// Consumes what stands before the data of a value: descriptors, format code and size. Gives
    /// how many bytes of data are to follow, whether or not they are there.
    ///
    /// # Errors
    /// As [`Reader::skip`], but for the data.
    pub(crate) fn opening(&mut self) -> Result<u64, DecodeError> {
        let mut depth_left = DEPTH_MAX;
        let mut code = self.byte()?;
        while code == code::DESCRIBED {
            depth_left = self.deeper(depth_left)?;
            self.skip_at(depth_left)?;
            code = self.byte()?;
        }
        Ok(match layout(code) {
            Some(Layout::Fixed(width)) => width as u64,
            Some(Layout::Variable(prefix) | Layout::Compound(prefix) | Layout::Array(prefix)) => {
                u64::from(self.length(prefix)?)
            }
            None => return Err(self.unexpected(code)),
        })
    }

    /// Consumes a list by its size.
    ///
    /// # Errors
    /// As [`Reader::skip`], and on any other type.
    #[inline]
    pub fn skip_list(&mut self) -> Result<(), DecodeError> {
        self.list_body().map(|_| ())
    }

    /// Consumes a map by its size.
    ///
    /// # Errors
    /// As [`Reader::skip`], and on any other type.
    #[inline]
    pub fn skip_map(&mut self) -> Result<(), DecodeError> {
        match self.byte()? {
            code::MAP8 => self.body(Prefix::Byte).map(|_| ()),
            code::MAP32 => self.body(Prefix::Word).map(|_| ()),
            other => Err(self.unexpected(other)),
        }
    }

    /// A reader at the value of the string `key` in the map that is next, if it has that key. Of
    /// equal keys the first counts; what stands before is passed by its size.
    ///
    /// # Errors
    /// As [`Reader::skip`], and on any other type.
    pub(crate) fn map_value(mut self, key: &str) -> Result<Option<Self>, DecodeError> {
        let Body { count, content: mut entries } = match self.byte()? {
            code::MAP8 => self.body(Prefix::Byte)?,
            code::MAP32 => self.body(Prefix::Word)?,
            other => return Err(self.unexpected(other)),
        };
        for _ in 0..count / 2 {
            let mut after = entries;
            let is_it = match after.byte()? {
                code::STR8 => after.variable(Prefix::Byte)? == key.as_bytes(),
                code::STR32 => after.variable(Prefix::Word)? == key.as_bytes(),
                _ => {
                    after = entries;
                    after.skip()?;
                    false
                }
            };
            let value = after;
            after.skip()?;
            if is_it {
                return Ok(Some(value));
            }
            entries = after;
        }
        Ok(None)
    }

    /// Consumes the next value and verifies it to the bottom, in linear time.
    ///
    /// # Errors
    /// Where anything inside is malformed, or beyond [`DEPTH_MAX`] or [`ELEMENTS_MAX`].
    pub fn check(&mut self) -> Result<(), DecodeError> {
        self.check_at(DEPTH_MAX, &mut { ELEMENTS_MAX })
    }

    pub(super) fn check_at(
        &mut self,
        depth_left: u32,
        elements_left: &mut u32,
    ) -> Result<(), DecodeError> {
        let code = self.byte()?;
        if code == code::DESCRIBED {
            let depth_left = self.deeper(depth_left)?;
            self.check_at(depth_left, elements_left)?;
            return self.check_at(depth_left, elements_left);
        }
        self.check_data(code, depth_left, elements_left)
    }

    pub(super) fn check_data(
        &mut self,
        code: u8,
        depth_left: u32,
        elements_left: &mut u32,
    ) -> Result<(), DecodeError> {
        match layout(code) {
            Some(Layout::Fixed(_)) if code == code::BOOLEAN => self.boolean_data().map(|_| ()),
            Some(Layout::Fixed(width)) => self.take(width).map(|_| ()),
            Some(Layout::Variable(prefix)) => match code {
                code::STR8 | code::STR32 => self.string_data(prefix).map(|_| ()),
                code::SYM8 | code::SYM32 => self.symbol_data(prefix).map(|_| ()),
                _ => self.variable(prefix).map(|_| ()),
            },
            Some(Layout::Compound(prefix)) => {
                let depth_left = self.deeper(depth_left)?;
                let is_map = matches!(code, code::MAP8 | code::MAP32);
                self.body(prefix)?.check_compound(is_map, depth_left, elements_left)
            }
            Some(Layout::Array(prefix)) => {
                let depth_left = self.deeper(depth_left)?;
                self.body(prefix)?.check_array(depth_left, elements_left)
            }
            None => Err(self.unexpected(code)),
        }
    }

    fn deeper(&self, depth_left: u32) -> Result<u32, DecodeError> {
        depth_left.checked_sub(1).ok_or_else(|| self.fail(Fault::TooDeep))
    }

    /// Consumes an array's constructor; gives the format code of its elements.
    pub(super) fn element_code(
        &mut self,
        mut depth_left: u32,
        elements_left: &mut u32,
    ) -> Result<u8, DecodeError> {
        loop {
            let code = self.byte()?;
            if code != code::DESCRIBED {
                return Ok(code);
            }
            depth_left = self.deeper(depth_left)?;
            self.check_at(depth_left, elements_left)?;
        }
    }
}

impl Body<'_> {
    /// Checks the elements of a list or map.
    fn check_compound(
        mut self,
        is_map: bool,
        depth_left: u32,
        elements_left: &mut u32,
    ) -> Result<(), DecodeError> {
        if is_map && self.count % 2 == 1 {
            return Err(self.content.fail(Fault::OddMap));
        }
        // Every element has a format code at least.
        if self.count as usize > self.content.rest().len() {
            return Err(self.content.fail(Fault::SizeMismatch));
        }
        self.charge(elements_left)?;
        let unread = self;
        for _ in 0..self.count {
            self.content.check_at(depth_left, elements_left)?;
        }
        self.finish()?;
        if is_map && self.count > 2 { unread.check_keys() } else { Ok(()) }
    }

    /// Checks that no two keys of a map are equal; its content was checked before. The one place
    /// here that allocates: comparing in place would cost quadratic time.
    fn check_keys(mut self) -> Result<(), DecodeError> {
        let mut keys = Vec::new();
        for _ in 0..self.count / 2 {
            keys.extend(self.content.shallow_value()?.key());
            self.content.skip()?;
        }
        keys.sort_unstable();
        if keys.is_sorted_by(|a, b| a < b) {
            Ok(())
        } else {
            Err(self.content.fail(Fault::DuplicateKey))
        }
    }

    /// Checks constructor and elements of an array [1.6.24].
    fn check_array(mut self, depth_left: u32, elements_left: &mut u32) -> Result<(), DecodeError> {
        // Some encoders leave out the constructor of an empty array.
        if self.count == 0 && self.content.is_empty() {
            return Ok(());
        }
        let code = self.content.element_code(depth_left, elements_left)?;
        match layout(code) {
            None => return Err(self.content.unexpected(code)),
            // Zero-width elements may come in any number: they are never expanded.
            Some(Layout::Fixed(width)) if code != code::BOOLEAN => {
                let len = (self.count as usize).checked_mul(width);
                let len = len.ok_or_else(|| self.content.fail(Fault::Truncated))?;
                self.content.take(len)?;
            }
            Some(
                Layout::Fixed(_) | Layout::Variable(_) | Layout::Compound(_) | Layout::Array(_),
            ) => {
                if self.count as usize > self.content.rest().len() {
                    return Err(self.content.fail(Fault::SizeMismatch));
                }
                self.charge(elements_left)?;
                for _ in 0..self.count {
                    self.content.check_data(code, depth_left, elements_left)?;
                }
            }
        }
        self.finish()
    }

    fn charge(&self, elements_left: &mut u32) -> Result<(), DecodeError> {
        let left = elements_left.checked_sub(self.count);
        *elements_left = left.ok_or_else(|| self.content.fail(Fault::TooManyElements))?;
        Ok(())
    }

    fn finish(&self) -> Result<(), DecodeError> {
        if self.content.is_empty() { Ok(()) } else { Err(self.content.fail(Fault::SizeMismatch)) }
    }
}
