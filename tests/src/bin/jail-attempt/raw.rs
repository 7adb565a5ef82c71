//! System calls by number, as an attacker makes them.

use std::io;

/// Makes the call of that number with up to six arguments.
///
/// # Errors
/// What the kernel says.
pub(crate) fn call<const N: usize>(number: i64, arguments: [usize; N]) -> io::Result<i64> {
    let argument = |position: usize| arguments.get(position).copied().unwrap_or(0);
    #[expect(
        unsafe_code,
        reason = "an attack is made of calls that no safe crate offers"
    )]
    // SAFETY: not every call is sound; those that the attempts make either change nothing in this
    // process, or end it, or are refused, and the process ends right after each.
    let result = unsafe {
        libc::syscall(
            number,
            argument(0),
            argument(1),
            argument(2),
            argument(3),
            argument(4),
            argument(5),
        )
    };
    if result == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Opens a path for reading through the entry for 32-bit programs, where calls have other numbers.
///
/// # Errors
/// What the kernel says.
pub(crate) fn open_by_interrupt(path: &std::ffi::CStr) -> io::Result<i64> {
    const OPEN_32: i32 = 5;
    // 32-bit programs have 32-bit addresses: the path has to be copied below 4 GiB.
    let low = call(
        libc::SYS_mmap,
        [
            0,
            4096,
            word(libc::PROT_READ | libc::PROT_WRITE),
            word(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT),
            usize::MAX,
            0,
        ],
    )?;
    let low = usize::try_from(low).map_err(io::Error::other)?;
    let bytes = path.to_bytes_with_nul();
    let target = std::ptr::with_exposed_provenance_mut::<u8>(low);
    #[expect(unsafe_code, reason = "there is no other way to that address")]
    // SAFETY: the page was just mapped, is longer than any path here, and nobody else knows it.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len());
    }
    let result: i32;
    #[expect(unsafe_code, reason = "only assembly reaches this entry")]
    // SAFETY: the call reads the path at the low address and changes nothing of this process but its
    // table of descriptors. rbx is not for asm operands, so it is kept and given back by hand.
    unsafe {
        std::arch::asm!(
            "push rbx",
            "mov ebx, {path:e}",
            "int 0x80",
            "pop rbx",
            path = in(reg) low,
            inlateout("eax") OPEN_32 => result,
            in("ecx") 0,
            in("edx") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if result < 0 {
        Err(io::Error::from_raw_os_error(-result))
    } else {
        Ok(i64::from(result))
    }
}

/// A C `int` as an argument.
pub(crate) fn word(value: i32) -> usize {
    usize::try_from(value.cast_unsigned()).unwrap_or(usize::MAX)
}

/// The address of something that outlives the call.
pub(crate) fn address<T: ?Sized>(value: &T) -> usize {
    std::ptr::from_ref(value).cast::<u8>().expose_provenance()
}
