// Package events holds the kinds of open files that tell of events: eventfd, timerfd, signalfd and epoll. They lead to
// nothing in a file system and are made anew by the restore. Their state is read from the kernel's memory
// (kernelview), which changes nothing in it; a read would.
package events
