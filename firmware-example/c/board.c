// Arm's MPS2+ board with a Cortex-M4F (AN386), as QEMU models it: a CMSDK APB UART, transmitting
// only.
#include "board.h"

#include <stdint.h>

// 2. The serial line of your board.
#define UART_DATA (*(volatile uint32_t *)0x40004000)
#define UART_STATE (*(volatile uint32_t *)0x40004004)   // bit 0: the transmit buffer is full
#define UART_CTRL (*(volatile uint32_t *)0x40004008)    // bit 0: transmitter on
#define UART_BAUDDIV (*(volatile uint32_t *)0x40004010) // clock cycles per bit, at least 16

void board_start(void) {
  UART_BAUDDIV = 217; // 25 MHz / 115,200
  UART_CTRL = 1;
}

void board_write(char byte) {
  while (UART_STATE & 1) {
  }
  UART_DATA = (uint8_t)byte;
}

// 3. Ends the emulation by a semihosting call (SYS_EXIT). Without a debugger that call faults: on a
//    board, loop instead.
_Noreturn void board_exit(bool success) {
  register uint32_t operation __asm__("r0") = 0x18;
  register uint32_t reason __asm__("r1") = success ? 0x20026 : 0x20024; // ApplicationExit, InternalError
  __asm__ volatile("bkpt 0xab" : : "r"(operation), "r"(reason) : "memory");
  for (;;) {
  }
}
