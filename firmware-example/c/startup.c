// Brings every Cortex-M with an FPU from reset to main.
#include <stdint.h>

#include "board.h"

extern uint32_t stack_end[], data_start[], data_end[], data_load[], bss_start[], bss_end[];
extern int main(void);

#define CPACR (*(volatile uint32_t *)0xe000ed88)

static _Noreturn void reset(void) {
  CPACR |= 0xf << 20; // full access to the FPU, before any code that may use it
  __asm__ volatile("dsb\nisb" ::: "memory");
  for (uint32_t *to = data_start, *from = data_load; to < data_end;)
    *to++ = *from++;
  for (uint32_t *to = bss_start; to < bss_end;)
    *to++ = 0;
  main();
  for (;;) {
  }
}

// Ends the program on an exception without a handler, instead of hanging.
static void fault(void) {
  for (const char *text = "\nfault\n"; *text != '\0'; text++)
    board_write(*text);
  board_exit(false);
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
    (void (*)(void))stack_end, reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault, fault,
};
