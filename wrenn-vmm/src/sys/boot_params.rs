//! The zero page as bytes.

use linux_loader::loader::bootparam::boot_params;

/// The memory of a zero page.
pub fn as_bytes(parameters: &boot_params) -> &[u8] {
    // SAFETY: the structure is `repr(C, packed)` plain numbers, so that it has no padding
    // and every byte is initialised; the slice borrows it and has its size.
    unsafe {
        std::slice::from_raw_parts(
            std::ptr::from_ref(parameters).cast(),
            size_of::<boot_params>(),
        )
    }
}
