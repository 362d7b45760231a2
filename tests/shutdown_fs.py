#!/usr/bin/env python3
"""A power cut for the tests: shuts a mounted ext4 or XFS down without flushing its log.

What was not synced is gone, as after pulling the plug; every further access fails with EIO until the
file system is mounted again. There is no way to call this ioctl from Rust without `unsafe`.

It says when it is prepared, and acts on the next line of its input: at that moment, not a Python's
start later.

usage: shutdown_fs.py MOUNTPOINT      (as root)
"""
import fcntl
import os
import struct
import sys

FS_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32), include/uapi/linux/fs.h
NO_LOG_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH

directory = os.open(sys.argv[1], os.O_RDONLY)
print("prepared", flush=True)
sys.stdin.readline()
fcntl.ioctl(directory, FS_IOC_SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
