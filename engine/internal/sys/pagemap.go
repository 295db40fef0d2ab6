package sys

import "crpipe/arch"

// PageCategory is a set of PAGE_IS_* bits of the PAGEMAP_SCAN ioctl
// (Documentation/admin-guide/mm/pagemap.rst, include/uapi/linux/fs.h).
type PageCategory uint64

// The categories of PAGEMAP_SCAN.
const (
	PageWPAllowed PageCategory = 1 << iota // the mapping can be tracked by userfaultfd WP_ASYNC
	PageWritten                            // written since it was last write-protected
	PageFile                               // backed by a file (page cache)
	PagePresent                            // in memory
	PageSwapped                            // in swap (or migrating)
	PagePFNZero                            // the shared page of zeros
	PageHuge                               // mapped by a huge page
	PageSoftDirty                          // soft-dirty bit
	PageGuard                              // guard region, Linux 6.15
)

// PageRegion is struct page_region: consecutive pages with the same set of
// returned categories. End is exclusive.
type PageRegion struct {
	Start, End arch.Addr
	Categories PageCategory
}

// PagemapScanFlags are the PM_SCAN_* bits.
type PagemapScanFlags uint64

// The flags of PAGEMAP_SCAN.
const (
	ScanWPMatching   PagemapScanFlags = 1 << 0 // write-protect again what matches
	ScanCheckWPAsync PagemapScanFlags = 1 << 1 // fail with EPERM where WP_ASYNC is not set up
)

// PagemapScanArgs says what PagemapScan looks for. A page matches when, after
// the categories in Inverted have been flipped, it has all of Mask and (if
// AnyOf is not empty) at least one of AnyOf. Return selects the categories
// that tell regions apart.
type PagemapScanArgs struct {
	Flags    PagemapScanFlags
	Start    arch.Addr // multiples of the page size
	End      arch.Addr
	MaxPages uint64 // stop after so many matching pages; 0: no limit
	Inverted PageCategory
	Mask     PageCategory
	AnyOf    PageCategory
	Return   PageCategory
}

const (
	// _IOWR('f', 16, struct pm_scan_arg); the same number on all five
	// architectures although ppc places the direction bits elsewhere.
	pagemapScanRequest = 0xc0606610
	sizeofPMScanArg    = 96
)
