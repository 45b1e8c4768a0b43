// Runs the decode kernel on the CPU, as plain C++.
//
// Standard input: five u64 (device address of the arena, arena bytes, table bytes, entry count, tiles), then the table,
// then the arena. Standard output: the arena afterwards.

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../src/kernels/decode.cu"

static void check(bool holds, const char *what) {
    if (!holds) {
        std::fprintf(stderr, "%s\n", what);
        std::exit(1);
    }
}

int main() {
    u64 header[5];
    check(std::fread(header, 8, 5, stdin) == 5, "no header");
    const u64 base = header[0], bytes = header[1], table_bytes = header[2], count = header[3], tiles = header[4];
    check(count * sizeof(Entry) <= table_bytes, "a table without its entries");
    Entry *entries = (Entry *)std::malloc(table_bytes);
    check(std::fread(entries, 1, table_bytes, stdin) == table_bytes, "no table");
    // What is allocated is just the arena, so that a sanitizer sees every access outside.
    u8 *arena = (u8 *)std::aligned_alloc(256, bytes);
    check(std::fread(arena, 1, bytes, stdin) == bytes, "no arena");
    for (u64 i = 0; i < count; i++) {
        entries[i].source += (u64)arena - base;
        entries[i].destination += (u64)arena - base;
    }
    static Shared shared;
    for (u64 tile = 0; tile < tiles; tile++) {
        std::memset(&shared, 0xa5, sizeof shared);
        decode_tile(entries, (u32)count, (u32)tile, shared);
    }
    check(std::fwrite(arena, 1, bytes, stdout) == bytes, "no output");
    std::free(arena);
    std::free(entries);
    return 0;
}
